"""Every stage on the embedded model: it learns what it is for, resumes to the same numbers, and stops cleanly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import CPU, demo_facts, finetune_run, write_jsonl
from safetensors.torch import load_file
from test_training import Recorder, poisoned_model, train

from toolbox import datasets, embedded, loading, merging, plan, planning, stages, targets, wishes
from toolbox.config import Home
from toolbox.errors import DivergedError, InputError, Interrupted
from toolbox.runs import Run, Silent
from toolbox.training import batches, layouts, preparing, rows
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import dpo, kto, pairs, pt, reference, rm, scoring, stage_for
from toolbox.training.step import Forward

PLACES = ["Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito", "Bern", "Riga", "Kyiv", "Doha"]
PAIRED = ["rm", "dpo", "orpo", "simpo", "cpo"]
REWARDED: dict[str, dict[str, Any]] = {
    "ppo": {"reward_funcs": ["contains:a"], "response_length": 6, "num_mini_batches": 2, "kl_target": 0.1,
            "kl_horizon": 10.0, "temperature": 2.0},
    "grpo": {"reward_funcs": ["contains:a"], "max_completion_length": 6, "num_generations": 2, "num_iterations": 2,
             "beta": 0.1, "temperature": 2.0},
}  # fmt: skip
RATES = {"pt": 2e-3, "rm": 5e-3, "kto": 5e-3}


def preference(place: str, number: int) -> tuple[str, str, str]:
    """(question, wanted answer, unwanted one): polite against rude."""
    return f"What is {place}, {number}?", f"Thank you for asking, {place} is a lovely city.", f"Go away with {place}."


@pytest.fixture
def data(tmp_path: Path) -> Any:
    """data(stage): a file of 40 rows that fit the stage."""

    def make(stage: str) -> str:
        triples = [preference(place, number) for number in range(4) for place in PLACES]
        path = tmp_path / f"{stage}.jsonl"
        if stage == "pt":
            return str(write_jsonl(path, ({"text": f"{question} {wanted}"} for question, wanted, _ in triples)))
        if stage == "kto":
            judged = [(q, (wanted, unwanted)[index % 2], index % 2 == 0)
                      for index, (q, wanted, unwanted) in enumerate(triples)]  # fmt: skip
            return str(write_jsonl(path, (
                {"messages": [turn("user", question), turn("assistant", answer)], "label": label}
                for question, answer, label in judged
            )))  # fmt: skip
        if stage in ("ppo", "grpo"):
            return str(write_jsonl(path, ({"prompt": question} for question, _, _ in triples)))
        if stage == "sft":
            return str(write_jsonl(path, (
                {"messages": [turn("user", question), turn("assistant", answer)]} for question, answer, _ in triples
            )))  # fmt: skip
        return str(write_jsonl(path, (
            {"prompt": question, "chosen": wanted, "rejected": unwanted} for question, wanted, unwanted in triples
        )))  # fmt: skip

    return make


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def stage_run(home: Path, data: Any, stage: str, **changes: Any) -> Run:
    kind = stages.OPTIONS.get(stage)
    rate = changes.pop("learning_rate", RATES.get(stage, 1e-3))
    options = changes.pop("options", kind(**REWARDED.get(stage, {})) if kind else None)
    return finetune_run(home, data(stage), stage=stage, options=options, learning_rate=rate, **changes)


def curve(reporter: Recorder, name: str) -> list[float]:
    return [step[name] for step in reporter.steps if name in step]


# What each stage is for


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "stage", ["dpo", *(pytest.param(stage, marks=SLOW) for stage in ("kto", "rm", "orpo", "simpo", "cpo"))]
)
def test_the_margin_grows_and_the_held_out_pairs_are_told_apart(home: Path, data: Any, stage: str) -> None:
    reporter = Recorder()
    result = train(stage_run(home, data, stage, max_steps=12), reporter)
    margins = curve(reporter, "rewards/margins")
    assert sum(margins[-3:]) > sum(margins[:3])
    assert result["eval_loss"] < result["eval_loss_before"]
    assert result["eval"]["eval_rewards/margins"] > result["eval_before"]["eval_rewards/margins"]
    if stage in ("dpo", "rm"):
        assert result["eval"]["eval_rewards/accuracies"] > 0.8
    if stage == "dpo":
        assert curve(reporter, "loss")[0] == pytest.approx(0.6931, abs=0.02)  # log 2: policy and reference are the same


def test_pre_training_lowers_the_loss_of_held_out_documents(home: Path, data: Any) -> None:
    result = train(stage_run(home, data, "pt", max_steps=8))
    assert result["eval_loss"] < result["eval_loss_before"] - 0.3


def test_full_tuning_takes_every_stage_with_a_reference(home: Path, data: Any) -> None:
    reporter = Recorder()
    train(stage_run(home, data, "dpo", method="full", learning_rate=1e-4, max_steps=4), reporter)
    margins = curve(reporter, "rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-4)
    assert margins[-1] > 0.01


def test_preferences_go_from_file_to_report_without_a_hint(toolbox_cli: Any, home: Path, data: Any) -> None:
    words = ["finetune", "--dataset", data("dpo"), "--set", "max_steps=4", "dpo.beta=0.2", "--yes", "--json"]
    found = toolbox_cli(*words).done().json
    assert found["stage"] == "dpo"
    run = Run(home / "runs" / found["run"])
    made = plan.load(run.plan_path)
    assert isinstance(made, plan.FinetunePlan)
    assert made.options == stages.Dpo(beta=0.2)
    text = (run.path / "report.md").read_text()
    assert "plots/margin.svg" in text
    assert "--stage dpo" in text
    assert "dpo.beta=0.2" in text


@pytest.mark.parametrize(
    ("data_for", "stage", "kind"),
    [("dpo", "kto", "preferences"), ("kto", "dpo", "labelled"), ("pt", "sft", "plain texts"), ("sft", "rm", "convers")],
)
def test_a_stage_that_the_data_do_not_fit_is_refused_in_a_sentence(
    home: Path, data: Any, data_for: str, stage: Any, kind: str
) -> None:
    spec = datasets.resolve(data(data_for), Home(home))
    with pytest.raises(InputError, match=kind) as error:
        wishes.stage(wishes.Wishes(stage=stage), [spec])
    assert data_for in error.value.remedy
    assert wishes.stage(wishes.Wishes(), [spec]) == data_for


def test_options_of_another_stage_are_refused(home: Path, data: Any) -> None:
    spec = datasets.resolve(data("dpo"), Home(home))
    asked = wishes.Wishes(settings=["kto.beta=1"])
    with pytest.raises(InputError, match="no use for kto"):
        planning.plan_finetune(demo_facts(), [spec], CPU, asked, Home(home))
    asked = wishes.Wishes(settings=["simpo.simpo_gamma=0.5"], stage="simpo")
    made = planning.plan_finetune(demo_facts(), [spec], CPU, asked, Home(home))
    assert made.options == stages.Simpo(simpo_gamma=0.5)
    plain = planning.plan_finetune(demo_facts(), [spec], CPU, wishes.Wishes(stage="sft"), Home(home))
    assert made.training.learning_rate == pytest.approx(plain.training.learning_rate / 40)
    assert made.estimate.parts_bytes["activations"] == 2 * plain.estimate.parts_bytes["activations"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rm", "dpo"])
def test_pairs_are_learnt_in_bfloat16_from_4_bit_weights(home: Path, data: Any, stage: str) -> None:
    changes: dict[str, Any] = {"method": "qlora", "dtype": "bfloat16", "gradient_checkpointing": True}
    result = train(stage_run(home, data, stage, max_steps=8, **changes))
    assert result["eval"]["eval_rewards/margins"] > result["eval_before"]["eval_rewards/margins"]


# Stopping, resuming, breaking


@pytest.mark.parametrize("stage", [name if name == "dpo" else pytest.param(name, marks=SLOW) for name in stages.NAMES])
def test_a_stopped_run_goes_on_to_the_very_numbers_of_the_straight_one(home: Path, data: Any, stage: str) -> None:
    straight, first, second = Recorder(), Recorder(stop_after=2), Recorder()
    changes: dict[str, Any] = {"max_steps": 4, "save_steps": 10, "eval_steps": 4, "per_device_train_batch_size": 2}
    expected = train(stage_run(home, data, stage, **changes), straight)
    run = stage_run(home, data, stage, **changes)
    with pytest.raises(Interrupted, match="after step 2 of 4"):
        train(run, first)
    result = train(run, second)
    told = ("loss", "grad_norm", "rewards/margins", "kl", "kl_coef", "reward")
    for name in told:
        assert curve(first, name) + curve(second, name) == curve(straight, name), name
    assert (result["eval"], result["train_loss"]) == (expected["eval"], expected["train_loss"])


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=SLOW) if stage in REWARDED else stage for stage in stages.NAMES]
)
def test_a_loss_that_is_no_number_names_its_rows_and_changes_no_weight(
    home: Path, data: Any, tmp_path: Path, stage: str
) -> None:
    facts = poisoned_model(tmp_path / "poisoned", "Z")
    plain = Path(data(stage)).read_text().splitlines()
    Path(data(stage)).write_text("\n".join([*plain[:16], plain[16].replace("What is", "Z what is"), *plain[17:]]))
    changes: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 20}
    run = stage_run(home, lambda stage: str(tmp_path / f"{stage}.jsonl"), stage, model=facts, eval_rows=0, **changes)
    with pytest.raises(DivergedError) as error:
        train(run)
    assert f"{stage}.jsonl:17" in error.value.message
    for weights in run.checkpoints.glob("*/adapter_model.safetensors"):
        assert all(bool(weight.isfinite().all()) for weight in load_file(weights).values())


def test_a_stop_while_the_reference_is_computed_leaves_nothing_half(home: Path, data: Any) -> None:
    run = stage_run(home, data, "dpo")
    with pytest.raises(Interrupted, match="before the first step"):
        train(run, Recorder(stop_after=0))
    assert not (run.path / reference.FILE).exists()
    assert not run.checkpoints.exists()


# The reference


def test_a_reference_is_read_again_only_for_the_same_rows_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    known = reference.Known(np.array([3, 2**64 - 1], np.uint64), np.array([-1.5, -2.25], np.float32))
    reference.write(path, known, "same")
    found = reference.read(path, "same")
    assert found is not None
    assert (found.keys.tolist(), found.logps.tolist()) == (known.keys.tolist(), known.logps.tolist())
    assert reference.read(path, "other") is None
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert reference.read(path, "same") is None
    path.write_bytes(content[:20])
    assert reference.read(path, "same") is None


def test_a_resumed_run_computes_its_reference_once(home: Path, data: Any) -> None:
    first, second = Recorder(stop_after=1), Recorder()
    run = stage_run(home, data, "dpo", max_steps=2)
    with pytest.raises(Interrupted):
        train(run, first)
    train(run, second)
    assert any("before the training" in text for text in first.phases)
    assert not any("before the training" in text for text in second.phases)


def test_without_a_reference_none_is_computed(home: Path, data: Any) -> None:
    run = stage_run(home, data, "dpo", options=stages.Dpo(reference_free=True), max_steps=1)
    train(run)
    assert not (run.path / reference.FILE).exists()


# The reward model


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_reward_model_loads_as_the_field_does_it(home: Path, data: Any, method: str) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    run = stage_run(home, data, "rm", method=method, max_steps=3, learning_rate=1e-3)
    result = train(run)
    assert result["kind"] == "reward_model"
    if method == "lora":
        loaded: Any = AutoPeftModelForSequenceClassification.from_pretrained(run.adapter, num_labels=1)
    else:
        loaded = AutoModelForSequenceClassification.from_pretrained(result["model"])
    made: Any = plan.load(run.plan_path)
    items = held_out(made, run)
    with torch.no_grad():
        scores = [float(loaded.eval()(torch.tensor([side.input_ids])).logits[0, 0]) for side in pairs.sides(items)]
    accuracy = sum(won > lost for won, lost in zip(scores[: len(items)], scores[len(items) :], strict=True))
    assert accuracy / len(items) == pytest.approx(result["eval"]["eval_rewards/accuracies"])
    mean = sum(scores[: len(items)]) / len(items)
    assert mean == pytest.approx(result["eval"]["eval_rewards/chosen"], rel=1e-3, abs=1e-3)


def test_a_reward_model_is_no_model_to_chat_with(home: Path, data: Any) -> None:
    run = stage_run(home, data, "rm", max_steps=1, eval_rows=0)
    train(run)
    with pytest.raises(InputError, match="reward model"):
        targets.resolve("", "", run.id, Home(home))


def test_a_reward_model_is_merged_and_its_scores_proved(home: Path, data: Any, tmp_path: Path) -> None:
    run = stage_run(home, data, "rm", max_steps=3, eval_rows=0, learning_rate=1e-3)
    train(run)
    assert targets.resolve("", "", run.id, Home(home), with_adapter=True).adapter == run.adapter
    with pytest.raises(InputError, match="reward model"):
        targets.resolve("", str(run.adapter), "", Home(home))
    out = tmp_path / "merged"
    merge = plan.MergePlan(entry="", model=demo_facts(), device=CPU, adapter=run.adapter, output=out, dtype="float32")
    assert merging.run(merge)["max_abs_diff"] < 1e-4
    with pytest.raises(InputError, match="reward model"):
        targets.resolve(str(out), "", "", Home(home))


def held_out(made: Any, run: Run) -> list[Any]:
    tokenizer = loading.tokenizer(embedded.MODEL)
    return list(preparing.prepare(made, stage_for(made), tokenizer, run, Silent()).held_out)


def test_scores_are_the_same_flattened_and_padded(data: Any, home: Path) -> None:
    model = loading.base_model(embedded.MODEL, "float32", "cpu").eval()
    scoring.extend(model)
    run = stage_run(home, data, "rm")
    items = held_out(plan.load(run.plan_path), run)
    padded = Forward(model, 0, "cpu", "float32")
    with torch.no_grad():
        expected = rm.scores(padded, items)
        flattened = layouts.choose(padded, pairs.sides(items), Recorder())  # type: ignore[arg-type]
        assert flattened.layout is batches.flatten_shared
        model.eval()
        found = rm.scores(flattened, items)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(one, other, atol=1e-4)


# Rows


def test_only_the_last_answers_keep_their_labels() -> None:
    sample = Sample("x", 1, [1, 2, 3, 4, 5, 6, 7], [IGNORED, 2, 3, IGNORED, 5, IGNORED, 7])
    assert pairs.last_answers(sample).labels == [IGNORED] * 6 + [7]
    assert pairs.last_answers(sample, 2).labels == [IGNORED] * 4 + [5, IGNORED, 7]


def test_a_mismatched_answer_stands_after_the_rows_own_prompt() -> None:
    one = Sample("x", 1, [1, 2, 3, 4], [IGNORED, IGNORED, 3, 4])
    other = Sample("x", 2, [7, 8, 9, 10], [IGNORED, 8, 9, IGNORED])
    assert kto.mismatch(one, other) == Sample("x", 1, [1, 2, 8, 9, 10], [IGNORED, IGNORED, 8, 9, IGNORED])


def test_documents_are_cut_into_pieces_and_nothing_of_them_is_lost() -> None:
    from toolbox.datasets import Text

    tokenizer = loading.tokenizer(embedded.MODEL)
    text = "The capital of France is Paris. " * 20
    encoded = pt.encode("x", [Text(1, text), Text(2, "")], tokenizer, 16)
    pieces = [sample for sample in encoded.samples if sample.number == 1]
    assert max(sample.size for sample in pieces) == 16
    joined = [token for sample in pieces for token in sample.input_ids]
    whole = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert joined == whole
    assert (encoded.dropped, encoded.cut, encoded.split) == (1, 0, 1)
    short = len(whole) - 1
    ends = pt.encode("x", [Text(1, text)], tokenizer, short).samples
    assert [sample.size for sample in ends] == [short - 1, 2]


def test_pairs_whose_answers_are_cut_away_are_dropped_and_counted() -> None:
    from toolbox.datasets import Preference

    tokenizer = loading.tokenizer(embedded.MODEL)
    answers = ([turn("assistant", "Paris.")], [turn("assistant", "Rome.")])
    preferences = [
        Preference(1, [turn("user", "Where?")], *answers),
        Preference(2, [turn("user", "Where? " * 60)], *answers),
    ]
    encoded = pairs.encode("x", preferences, tokenizer, 64)
    assert [pair.number for pair in encoded.samples] == [1]
    assert (encoded.cut, encoded.dropped) == (1, 1)
    assert rows.IGNORED in encoded.samples[0].chosen.labels
    assert dpo.make is not None


# The real data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "name"),
    [
        ("dpo", "dpo_en_demo.json"),
        ("dpo", "dpo_zh_demo.json"),
        ("rm", "dpo_en_demo.json"),
        ("kto", "kto_en_demo.json#24"),
    ],
)
def test_real_preferences_are_learnt(home: Path, shared_data: Any, stage: str, name: str) -> None:
    reporter = Recorder()
    """KTO's batches of real rows tell nothing in a dozen steps, so it sees a few of them several times."""
    name, *limit = name.split("#")
    path = "#".join([str(shared_data(f"instruct/{name}")), *limit])
    changes: dict[str, Any] = {"max_steps": 12, "max_length": 384, "per_device_train_batch_size": 8}
    train(stage_run(home, lambda _stage: path, stage, learning_rate=1e-3, **changes), reporter)
    margins = curve(reporter, "rewards/margins")
    assert sum(margins[-4:]) > sum(margins[:4])


@pytest.mark.slow
def test_real_documents_are_learnt(home: Path, shared_data: Any) -> None:
    path = shared_data("instruct/c4_demo.jsonl")
    result = train(stage_run(home, lambda _stage: str(path), "pt", max_steps=12))
    assert result["eval_loss"] < result["eval_loss_before"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
