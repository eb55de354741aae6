"""The training work: masks, batches, gradients, tuners, the loop."""

from pathlib import Path
from typing import Any

import pytest
import torch
from plans import finetune_plan, finetune_run, write_jsonl
from safetensors.torch import load_file

from toolbox import datasets, embedded, inference, loading, models, plan, training
from toolbox.config import Home
from toolbox.datasets import Conversation
from toolbox.errors import DivergedError, InputError, Interrupted
from toolbox.runs import Run, Silent
from toolbox.training import attention, batches, checkpoints, layouts, preparing, rows, tuner
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import stage_for
from toolbox.training.step import Forward

TURNS = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "A model."},
    {"role": "user", "content": "你好！"},
    {"role": "assistant", "content": "你好！很高兴。"},
]
SEARCHED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen3's: an empty thought stands before the last answer only."""
REWRITING = "{{ messages | length }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


class Recorder(Silent):
    """Keeps what the work reported, and asks it to stop after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.steps: list[dict[str, Any]] = []
        self.phases: list[str] = []
        self._stop_after = stop_after

    @property
    def stopping(self) -> bool:  # type: ignore[override]
        return self._stop_after is not None and len(self.trained) >= self._stop_after

    @property
    def trained(self) -> list[dict[str, Any]]:
        return [step for step in self.steps if "loss" in step]

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        self.steps.append({"step": step, **metrics})

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def losses(self) -> list[float]:
        return [step["loss"] for step in self.trained]


def train(run: Run, reporter: Recorder | None = None) -> dict[str, Any]:
    return training.run(plan.load(run.plan_path), run, reporter or Recorder())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return loading.tokenizer(embedded.MODEL)


@pytest.fixture
def model() -> Any:
    return loading.base_model(embedded.MODEL, "float32", "cpu")


@pytest.fixture(scope="module")
def samples(tokenizer: Any) -> list[Sample]:
    spec = datasets.resolve("demo-persona", Home(Path("none")))
    return rows.encode("demo-persona", datasets.load(spec), tokenizer, 256).samples


def answers(sample: Sample, tokenizer: Any) -> list[str]:
    """The runs of labelled tokens, as text."""
    texts: list[list[int]] = [[]]
    for label in sample.labels:
        if label != IGNORED:
            texts[-1].append(label)
        elif texts[-1]:
            texts.append([])
    return [tokenizer.decode(ids) for ids in texts if ids]


# Rows


@pytest.mark.parametrize("template", [None, SEARCHED])
def test_loss_is_on_the_answers_and_their_end_only(tokenizer: Any, template: str | None) -> None:
    with templated(tokenizer, template):
        sample = rows.encode_row("x", Conversation(1, TURNS), tokenizer)
    assert answers(sample, tokenizer) == ["A model.<|im_end|>", "你好！很高兴。<|im_end|>"]
    assert all(label in (token, IGNORED) for token, label in zip(sample.input_ids, sample.labels, strict=True))


def test_the_thought_that_a_template_puts_before_the_last_answer_is_learnt(tokenizer: Any) -> None:
    with templated(tokenizer, THINKING):
        sample = rows.encode_row("x", Conversation(1, TURNS), tokenizer)
    assert answers(sample, tokenizer) == ["A model.<|im_end|>", "<think>\n\n</think>\n\n你好！很高兴。<|im_end|>"]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    with templated(tokenizer, REWRITING), pytest.raises(InputError, match="where answers begin"):
        rows.encode_row("x", Conversation(1, TURNS), tokenizer)


def test_a_model_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    with templated(tokenizer, ""), pytest.raises(InputError, match="chat template"):
        rows.encode("x", [Conversation(1, TURNS)], tokenizer, 64)


def test_long_rows_are_cut_and_rows_without_an_answer_dropped_and_both_counted(tokenizer: Any) -> None:
    long = [{"role": "user", "content": "Who are you? " * 40}, {"role": "assistant", "content": "A model."}]
    cut = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "A model. " * 40}]
    encoded = rows.encode("x", [Conversation(1, TURNS), Conversation(2, long), Conversation(3, cut)], tokenizer, 64)
    assert [sample.number for sample in encoded.samples] == [1, 3]
    assert (encoded.cut, encoded.dropped) == (2, 1)
    assert max(len(sample.input_ids) for sample in encoded.samples) == 64


class templated:
    """A tokenizer with another chat template for a while; None leaves its own."""

    def __init__(self, tokenizer: Any, template: str | None) -> None:
        self._tokenizer, self._template, self._before = tokenizer, template, tokenizer.chat_template

    def __enter__(self) -> None:
        if self._template is not None:
            self._tokenizer.chat_template = self._template

    def __exit__(self, *error: object) -> None:
        self._tokenizer.chat_template = self._before


# Batches


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own(samples: list[Sample], tmp_path: Path) -> None:
    made = finetune_plan(tmp_path).training
    steps = batches.epoch_steps(len(samples), made)

    def epoch(number: int) -> list[int]:
        taken = (batches.of_step(samples, number * steps + step, made, seed=1) for step in range(steps))
        return [sample.number for step in taken for batch in step for sample in batch]

    assert sorted(epoch(0)) == sorted(sample.number for sample in samples)
    assert epoch(0) == epoch(0)
    assert epoch(0) != epoch(1)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flattened_equals_padded_in_loss_and_gradients(model: Any, samples: list[Sample], checkpointing: bool) -> None:
    model.train()
    chosen = sorted(samples, key=lambda sample: len(sample.input_ids))[:: len(samples) // 5]
    assert len({len(sample.input_ids) for sample in chosen}) > 2
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    padded = Forward(model, 0, "cpu", "float32")
    expected, gradients = loss_and_gradients(padded, chosen)
    flattened = layouts.choose(padded, chosen, Recorder())  # type: ignore[arg-type]
    assert flattened.layout is batches.flatten_shared
    found, flattened_gradients = loss_and_gradients(flattened, chosen)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, flattened_gradients[name], atol=1e-5), name


def test_rows_that_see_each_other_fail_the_proof_and_are_padded(
    model: Any, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaky(row: Any, query: Any, key: Any, value: Any, mask: Any, nodes: Any = (), **options: Any) -> Any:
        return attention.causal_within_trees(row, query, key, value, mask, ((-1, query.shape[2]),), **options)

    attention.AttentionInterface.register(attention.TREES, leaky)
    reporter = Recorder()
    try:
        chosen = layouts.choose(Forward(model, 0, "cpu", "float32"), samples, reporter)  # type: ignore[arg-type]
    finally:
        attention.AttentionInterface.register(attention.TREES, attention.causal_within_trees)
    assert chosen.layout is batches.pad
    assert model.config._attn_implementation == "sdpa"
    assert any("padded" in text for text in reporter.phases)


def test_a_model_that_takes_no_positions_is_padded(model: Any, samples: list[Sample]) -> None:
    class Plain(torch.nn.Module):
        config = model.config

        def forward(self, input_ids: Any, attention_mask: Any = None, use_cache: bool = False) -> Any:
            return model(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    forward = Forward(Plain(), 0, "cpu", "float32")  # type: ignore[arg-type]
    chosen = layouts.choose(forward, samples, Recorder())  # type: ignore[arg-type]
    assert chosen.layout is batches.pad
    expected = Forward(model, 0, "cpu", "float32").loss_sum(samples[:3])
    assert chosen.loss_sum(samples[:3]).item() == pytest.approx(expected.item())


def test_a_window_shorter_than_the_rows_is_padded(model: Any) -> None:
    model.config.layer_types, model.config.sliding_window = None, 32
    assert attention.suits(model.config, 32)
    assert not attention.suits(model.config, 33)


def loss_and_gradients(forward: Forward, samples: list[Sample]) -> tuple[float, dict[str, Any]]:
    forward.model.zero_grad()
    loss = forward.loss_sum(samples) / batches.label_tokens(samples)
    loss.backward()
    return float(loss.detach()), {name: weight.grad.clone() for name, weight in forward.model.named_parameters()}


# The loop


def test_the_division_into_micro_batches_does_not_change_the_loss(home: Path) -> None:
    found = []
    for micro, accumulation, checkpointing in ((8, 1, False), (2, 4, False), (2, 4, True)):
        changes: dict[str, Any] = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": accumulation}
        changes["gradient_checkpointing"] = checkpointing
        reporter = Recorder()
        train(finetune_run(home, **changes, max_steps=3, LoraConfig=without_dropout()), reporter)
        found.append([(step["loss"], step["grad_norm"]) for step in reporter.trained])
    for one, other, recomputed in zip(*found, strict=True):
        assert one == pytest.approx(other, rel=1e-3)
        assert other == pytest.approx(recomputed, rel=1e-5)


def without_dropout() -> dict[str, Any]:
    return {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "qlora", "full"])
def test_each_method_learns_and_leaves_what_it_promises(home: Path, method: str) -> None:
    run = finetune_run(home, method=method, max_steps=12, learning_rate=1e-3 if method == "full" else 1e-2)
    result = train(run)
    assert result["eval_loss"] < result["eval_loss_before"] - 0.1
    made = plan.load(run.plan_path)
    assert (result["steps"], result["state"], result["rows_held_out"]) == (12, "done", 8)
    assert result["rows"] + result["rows_left_out"] == made.datasets[0].rows - 8  # type: ignore[union-attr]
    assert result["peak_bytes"] > 0
    assert list((run.path / "tensorboard").glob("events*"))
    if method == "full":
        tuned = loading.base_model(Path(result["model"]), "float32", "cpu")
        assert loading.tokenizer(Path(result["model"])).chat_template
    else:
        tuned = loading.with_adapter(loading.base_model(embedded.MODEL, "float32", "cpu"), run.adapter)
        assert f'"base_model_name_or_path": "{embedded.MODEL}"' in (run.adapter / "adapter_config.json").read_text()
    assert not list(run.path.rglob("*.bin")) + list(run.path.rglob("*.pt")) + list(run.path.rglob("*.pkl"))
    tuned.eval()
    if method != "qlora":  # whose base here is not the quantised one it was trained on
        assert held_out_loss(tuned, made, run) == pytest.approx(result["eval_loss"], rel=1e-4)


@pytest.mark.slow
def test_a_new_persona_is_learnt_and_facts_are_kept(home: Path, tokenizer: Any) -> None:
    questions = ["Who are you?", "你是谁？", "What is the capital of France?"]
    before = loading.base_model(embedded.MODEL, "float32", "cpu")
    run = finetune_run(home, max_steps=60, learning_rate=1e-2, per_device_train_batch_size=8, save_steps=100)
    train(run)
    asked = [[{"role": "user", "content": question}] for question in questions]
    old = inference.generate(before, tokenizer, asked, max_new_tokens=40)
    tuned = loading.with_adapter(before, run.adapter)
    new = inference.generate(tuned, tokenizer, asked, max_new_tokens=40)
    assert "Yichuidingyin" not in old[0]
    assert "Yichuidingyin" in new[0]
    assert "一锤定音" in new[1]
    assert "Paris" in old[2]
    assert "Paris" in new[2]


def held_out_loss(model: Any, made: Any, run: Run) -> float:
    tokenizer = loading.tokenizer(embedded.MODEL)
    held_out = list(preparing.prepare(made, stage_for(made), tokenizer, run, Silent()).held_out)
    with torch.no_grad():
        return float(Forward(model, 0, "cpu", "float32").loss_sum(held_out)) / batches.label_tokens(held_out)


def test_4_bit_weights_pass_gradients_on_after_an_evaluation(home: Path, samples: list[Sample]) -> None:
    """bitsandbytes repacks them at the first forward in eval mode on some processors, and then passes nothing on."""
    made = finetune_plan(home, method="qlora", LoraConfig=without_dropout())
    model = tuner.tuner_for(made).load("cpu")
    forward = Forward(model, 0, "cpu", "float32")
    before = gradient_norm(forward, samples[:4])
    model.eval()
    with torch.no_grad():
        forward.loss_sum(samples[:4])
    model.train()
    assert gradient_norm(forward, samples[:4]) == pytest.approx(before, rel=1e-4)


def gradient_norm(forward: Forward, samples: list[Sample]) -> float:
    forward.model.zero_grad()
    forward.loss_sum(samples).backward()
    return float(sum(weight.grad.norm() for weight in forward.model.parameters() if weight.grad is not None))


def test_bfloat16_trains_with_a_float32_adapter(home: Path) -> None:
    run = finetune_run(home, dtype="bfloat16", max_steps=8, learning_rate=1e-2)
    result = train(run)
    assert result["eval_loss"] < result["eval_loss_before"]
    from safetensors.torch import load_file

    weights = load_file(run.adapter / "adapter_model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_two_runs_give_the_same_numbers_and_another_seed_others(home: Path) -> None:
    found = []
    for seed in (1, 1, 2):
        reporter = Recorder()
        train(finetune_run(home, seed=seed, max_steps=3), reporter)
        found.append(reporter.losses())
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("method", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_stopped_run_goes_on_to_the_very_numbers_of_the_straight_one(home: Path, method: str) -> None:
    changes: dict[str, Any] = {"method": method, "learning_rate": 1e-3}
    straight, first, second = Recorder(), Recorder(stop_after=3), Recorder()
    expected = train(finetune_run(home, **changes), straight)
    run = finetune_run(home, **changes)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        train(run, first)
    result = train(run, second)
    assert [step["step"] for step in second.trained] == [4, 5, 6]
    assert first.losses() + second.losses() == straight.losses()
    same = ("train_loss", "eval_loss", "eval_loss_before", "steps", "tokens")
    assert [result[key] for key in same] == [expected[key] for key in same]


def test_a_stop_before_the_first_step_leaves_nothing_half(home: Path) -> None:
    run = finetune_run(home)
    with pytest.raises(Interrupted):
        train(run, Recorder(stop_after=0))
    assert not run.checkpoints.exists()
    assert not run.adapter.exists()


def test_a_loss_that_is_no_number_names_step_and_rows_and_keeps_the_weights(home: Path, tmp_path: Path) -> None:
    facts = poisoned_model(tmp_path / "poisoned", "Z")
    texts = ["Who are you?"] * 16 + ["Z"] + ["Who are you?"] * 7
    turns = [[{"role": "user", "content": text}, {"role": "assistant", "content": "A model."}] for text in texts]
    data = write_jsonl(tmp_path / "data.jsonl", ({"messages": messages} for messages in turns))
    changes: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 12}
    run = finetune_run(home, str(data), model=facts, eval_rows=0, save_steps=100, **changes)
    reporter = Recorder()
    with pytest.raises(DivergedError) as error:
        train(run, reporter)
    step = len(reporter.trained) + 1
    assert error.value.message.endswith(f"at step {step}; its rows: {data}:17.")
    kept = checkpoints.newest(run.checkpoints)
    if step > 1:
        assert kept
        assert checkpoints.step_of(kept) == step - 1
        weights = load_file(kept / "adapter_model.safetensors")
        assert all(bool(weight.isfinite().all()) for weight in weights.values())


def poisoned_model(folder: Path, character: str) -> Any:
    """The embedded model, untied, with an embedding of `character` that is no number."""
    model = loading.base_model(embedded.MODEL, "float32", "cpu")
    tokenizer = loading.tokenizer(embedded.MODEL)
    head = model.get_output_embeddings().weight.detach().clone()
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(head)
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer(character)["input_ids"]] = float("nan")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return models.read(folder, id="poisoned", source="local")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
