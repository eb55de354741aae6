"""Each stage's loss on the same batch, by TRL's trainer and by ours: they agree to 1e-4."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import finetune_plan, finetune_run, stored

from toolbox import embedded, loading, plugins, stages
from toolbox.runs import Silent
from toolbox.stages import Cpo, Dpo, Kto, Orpo, Rm, Simpo
from toolbox.training import batches, rows
from toolbox.training import stages as training_stages
from toolbox.training.rows import IGNORED, Sample
from toolbox.training.stages import Stage, kto, pairs, rm, scoring
from toolbox.training.stages.pairs import Pair
from toolbox.training.step import Forward

pytestmark = pytest.mark.slow  # importing TRL and making its trainers takes longer than all the losses
TOLERANCE = 1e-4


def same(loss: float) -> Any:
    """What the loss is in another division into micro-batches, but for rounding."""
    return pytest.approx(loss, rel=1e-5, abs=1e-5)


QUESTIONS = ["Who are you?", "What is the capital of France?", "Say something nice.", "你是谁？"]
CHOSEN = [
    "I am a small model that answers briefly.",
    "Paris.",
    "You did that well, and soon it will work.",
    "一个模型。",
]
REJECTED = ["No idea.", "It is a town somewhere, maybe London, or not.", "No.", "我不知道你在说什么，也不想知道。"]


@pytest.fixture(scope="module", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("trl")
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return loading.tokenizer(embedded.MODEL)


@pytest.fixture(scope="module")
def reference() -> Any:
    return loading.base_model(embedded.MODEL, "float32", "cpu").eval()


@pytest.fixture(scope="module")
def policy(reference: Any) -> Any:
    """The reference with noise on every weight, so that no log-ratio is zero."""
    model, generator = copy.deepcopy(reference), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.02 * weight.std() * torch.randn(weight.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module")
def items(tokenizer: Any) -> list[Pair]:
    def turn(role: str, text: str) -> list[dict[str, Any]]:
        return [{"role": role, "content": text}]

    from toolbox.datasets import Preference

    preferences = [
        Preference(number, turn("user", question), turn("assistant", chosen), turn("assistant", rejected))
        for number, (question, chosen, rejected) in enumerate(zip(QUESTIONS, CHOSEN, REJECTED, strict=True), 1)
    ]
    made: list[Pair] = pairs.encode("x", preferences, tokenizer, 128).samples
    return made


@pytest.fixture(scope="module")
def preferences() -> Any:
    """What TRL's trainers want at their making; the batches compared are made from our own rows."""
    from datasets import Dataset

    return Dataset.from_list(
        [{"prompt": q, "chosen": c, "rejected": r} for q, c, r in zip(QUESTIONS, CHOSEN, REJECTED, strict=True)]
    )


def ours(
    name: str, options: Any, reference: Any, policy: Any, items: list[Any], home: Path, micro: int = 4
) -> tuple[float, dict[str, float]]:
    """Our loss of `items` as one effective batch, in micro-batches of `micro`, and its figures."""
    plan = finetune_plan(home, stage=name, options=options)
    stage: Stage = training_stages.stage_for(plan)
    run = finetune_run(home)
    stage.prepare(Forward(reference, 0, "cpu", "float32"), stored(run.path / "rows", list(items)), run, Silent())
    forward = Forward(policy, 0, "cpu", "float32")
    micro_batches = [items[begin : begin + micro] for begin in range(0, len(items), micro)]
    policy.eval()
    with torch.no_grad():
        totals = stage.totals(forward, micro_batches)
        outcomes = [stage.loss(forward, batch, totals) for batch in micro_batches]
    from toolbox.training.step import means

    return sum(float(outcome.loss) for outcome in outcomes), means(outcomes)


def padded(samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Samples as TRL's collators lay them out."""
    longest = max(sample.size for sample in samples)

    def filled(values: Callable[[Sample], list[int]], filling: int) -> torch.Tensor:
        return torch.tensor([values(sample) + [filling] * (longest - sample.size) for sample in samples])

    return {
        "input_ids": filled(lambda sample: sample.input_ids, 0),
        "attention_mask": filled(lambda sample: [1] * sample.size, 0),
        "completion_mask": filled(lambda sample: [int(label != IGNORED) for label in sample.labels], 0),
        "labels": filled(lambda sample: sample.labels, IGNORED),
    }


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder), "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no",
        "per_device_train_batch_size": 4, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def dpo_trainer(reference: Any, policy: Any, preferences: Any, tokenizer: Any, tmp_path_factory: Any) -> Any:
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=DPOConfig(**settings(tmp_path_factory.mktemp("dpo"))),
        train_dataset=preferences,
        processing_class=tokenizer,
    )


DPO_NAMES = [name.removeprefix("dpo.") for name in plugins.BUILT_IN["loss"] if name.startswith("dpo.")]
DPO_CASES = [
    Dpo(loss_type=name, label_smoothing=smoothing, beta=beta)
    for name in DPO_NAMES
    for smoothing, beta in (((0.0, 0.1), (0.2, 0.5)) if name in ("robust", "aot", "aot_unpaired") else ((0.0, 0.3),))
    if name != "exo_pair"
] + [Dpo(loss_type="exo_pair", label_smoothing=0.1)]


@pytest.mark.parametrize("options", DPO_CASES, ids=lambda options: f"{options.loss_type}-{options.label_smoothing}")
def test_dpo(options: Dpo, dpo_trainer: Any, reference: Any, policy: Any, items: list[Pair], home: Path) -> None:
    dpo_trainer.loss_types, dpo_trainer.beta = [options.loss_type], options.beta
    dpo_trainer.label_smoothing = options.label_smoothing
    dpo_trainer.model.eval()
    batch = padded(pairs.sides(items))
    del batch["labels"]
    with torch.no_grad():
        expected = float(dpo_trainer._compute_loss(dpo_trainer.model, batch, False))
    found, figures = ours("dpo", options, reference, policy, items, home)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    told = {name: values[-1] for name, values in dpo_trainer._metrics["eval"].items()}
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies"):
        assert figures[name] == pytest.approx(told[name], abs=TOLERANCE), name
    if "aot" not in options.loss_type:  # which sorts each micro-batch by itself
        assert ours("dpo", options, reference, policy, items, home, micro=1)[0] == same(found)


def test_dpo_without_a_reference(reference: Any, policy: Any, items: list[Pair], home: Path) -> None:
    options = Dpo(reference_free=True, label_smoothing=0.1)
    logps = Forward(policy, 0, "cpu", "float32").logps(pairs.sides(items)).detach()
    margin = options.beta * (logps[:4] - logps[4:])
    expected = -(0.9 * margin.sigmoid().log() + 0.1 * (-margin).sigmoid().log()).mean()
    assert ours("dpo", options, reference, policy, items, home)[0] == pytest.approx(float(expected), abs=TOLERANCE)


@pytest.mark.parametrize(
    "options",
    [Kto(), Kto(beta=0.5, desirable_weight=1.5, undesirable_weight=0.7), Kto(loss_type="apo_zero_unpaired")],
    ids=["kto", "weights", "apo"],
)
def test_kto(
    options: Kto, reference: Any, policy: Any, items: list[Pair], tokenizer: Any, home: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    answers = [pair.chosen for pair in items[:2]] + [pair.rejected for pair in items[2:]]
    judged = [
        kto.Judged(answer, index < 2, kto.mismatch(answer, answers[(index + 1) % 4]))
        for index, answer in enumerate(answers)
    ]
    trainer = KTOTrainer(
        model=copy.deepcopy(policy),
        ref_model=copy.deepcopy(reference),
        args=KTOConfig(
            **settings(tmp_path), beta=options.beta, loss_type=options.loss_type,
            desirable_weight=options.desirable_weight, undesirable_weight=options.undesirable_weight,
        ),
        train_dataset=Dataset.from_list([{"prompt": q, "completion": c, "label": i < 2} for i, (q, c) in
                                         enumerate(zip(QUESTIONS, CHOSEN, strict=True))]),
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.eval()
    batch = padded(answers)
    others = padded([item.mismatched for item in judged])
    batch |= {f"KL_{name}": others[name] for name in ("input_ids", "attention_mask", "completion_mask")}
    del batch["labels"]
    batch["label"] = torch.tensor([item.wanted for item in judged])
    with torch.no_grad():
        expected = float(trainer._compute_loss(trainer.model, batch, False))
    found, figures = ours("kto", options, reference, policy, judged, home)
    assert found == pytest.approx(expected, abs=TOLERANCE)
    assert ours("kto", options, reference, policy, judged, home, micro=1)[0] == same(found)
    told = {name: values[-1] for name, values in trainer._metrics["eval"].items()}
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl"):
        assert figures[name] == pytest.approx(told[name], abs=TOLERANCE), name


def experimental(items: list[Pair], whole: bool = False) -> dict[str, torch.Tensor]:
    """A batch as TRL's experimental trainers take it."""
    batch: dict[str, torch.Tensor] = {}
    for side, samples in (("chosen", [p.chosen for p in items]), ("rejected", [p.rejected for p in items])):
        found = padded(samples)
        batch |= {f"{side}_{name}": found[name] for name in ("input_ids", "attention_mask", "labels")}
    return batch


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_orpo(
    beta: float, reference: Any, policy: Any, items: list[Pair], preferences: Any, tokenizer: Any, home: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    trainer = ORPOTrainer(
        model=copy.deepcopy(policy), args=ORPOConfig(**settings(tmp_path), beta=beta), train_dataset=preferences,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.eval()
    with torch.no_grad():
        expected, told = trainer.get_batch_loss_metrics(trainer.model, experimental(items), "train")
    found, figures = ours("orpo", Orpo(beta=beta), reference, policy, items, home)
    assert found == pytest.approx(float(expected), abs=TOLERANCE)
    assert figures["rewards/margins"] == pytest.approx(told["rewards/margins"], abs=TOLERANCE)
    assert ours("orpo", Orpo(beta=beta), reference, policy, items, home, micro=1)[0] == same(found)


CPO_CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("cpo", Cpo(), {}),
    ("cpo", Cpo(label_smoothing=0.1, beta=0.5), {"label_smoothing": 0.1, "beta": 0.5}),
    ("cpo", Cpo(loss_type="hinge", cpo_alpha=0.5), {"loss_type": "hinge", "cpo_alpha": 0.5}),
    ("cpo", Cpo(loss_type="ipo"), {"loss_type": "ipo"}),
    ("simpo", Simpo(), {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0}),
    (
        "simpo",
        Simpo(beta=0.1, simpo_gamma=0.5, label_smoothing=0.1),
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 0.1, "simpo_gamma": 0.5, "label_smoothing": 0.1},
    ),
]


@pytest.mark.parametrize(("name", "options", "theirs"), CPO_CASES)
def test_cpo_and_simpo(
    name: str, options: Any, theirs: dict[str, Any], reference: Any, policy: Any, items: list[Pair],
    preferences: Any, tokenizer: Any, home: Path, tmp_path: Path,
) -> None:  # fmt: skip
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    trainer = CPOTrainer(
        model=copy.deepcopy(policy), args=CPOConfig(**settings(tmp_path), **theirs), train_dataset=preferences,
        processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.eval()
    with torch.no_grad():
        expected, told = trainer.get_batch_loss_metrics(trainer.model, experimental(items), "train")
    found, figures = ours(name, options, reference, policy, items, home)
    assert found == pytest.approx(float(expected), abs=TOLERANCE)
    assert figures["rewards/margins"] == pytest.approx(told["rewards/margins"], abs=TOLERANCE)
    assert ours(name, options, reference, policy, items, home, micro=1)[0] == same(found)


@pytest.mark.parametrize("centred", [0.0, 0.01])
def test_reward_model(
    centred: float, policy: Any, items: list[Pair], preferences: Any, tokenizer: Any, home: Path, tmp_path: Path
) -> None:
    """TRL scores with transformers' model for sequence classification, ours with a head beside the language head."""
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    model = copy.deepcopy(policy)
    torch.manual_seed(3)
    scoring.extend(model)
    model.score.weight.data *= 20
    theirs = AutoModelForSequenceClassification.from_pretrained(embedded.MODEL, num_labels=1, dtype=torch.float32)
    assert not theirs.load_state_dict(model.state_dict(), strict=False).missing_keys
    trainer = RewardTrainer(
        model=theirs, args=RewardConfig(**settings(tmp_path), center_rewards_coefficient=centred or None),
        train_dataset=preferences, processing_class=tokenizer,
    )  # fmt: skip
    batch = padded(pairs.sides(items))
    batch["input_ids"][batch["attention_mask"] == 0] = trainer.model.config.pad_token_id
    trainer.model.eval()
    with torch.no_grad():
        expected = trainer.compute_loss(trainer.model, {name: batch[name] for name in ("input_ids", "attention_mask")})
    options = Rm(center_rewards_coefficient=centred)
    found, figures = ours("rm", options, None, model, items, home)
    assert found == pytest.approx(float(expected), abs=TOLERANCE)
    assert figures["rewards/margins"] == pytest.approx(trainer._metrics["eval"]["margin"][-1], abs=TOLERANCE)
    with torch.no_grad():
        from toolbox.training import layouts

        flattened = layouts.choose(Forward(model, 0, "cpu", "float32"), pairs.sides(items), Silent())
        assert flattened.layout is batches.flatten_shared
        chosen, rejected = rm.scores(flattened, items)
    assert float((chosen - rejected).mean()) == pytest.approx(figures["rewards/margins"], abs=TOLERANCE)


def test_supervised_fine_tuning(
    reference: Any, policy: Any, items: list[Pair], preferences: Any, tokenizer: Any, home: Path, tmp_path: Path
) -> None:
    from trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        model=copy.deepcopy(policy), args=SFTConfig(**settings(tmp_path)), processing_class=tokenizer,
        train_dataset=preferences.rename_column("chosen", "completion").remove_columns("rejected"),
    )  # fmt: skip
    trainer.model.eval()
    batch = padded([pair.chosen for pair in items])
    with torch.no_grad():
        expected = trainer.compute_loss(
            trainer.model, {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        )
    found, _figures = ours("sft", None, reference, policy, [pair.chosen for pair in items], home)
    assert found == pytest.approx(float(expected), abs=TOLERANCE)


def test_every_stage_with_options_is_held_against_trl() -> None:
    assert set(stages.OPTIONS) == {
        "sft",
        "rm",
        "dpo",
        "kto",
        "orpo",
        "simpo",
        "cpo",
        "ppo",
        "grpo",
    }  # grpo: test_policy.py
    assert {options.loss_type for options in DPO_CASES} == set(DPO_NAMES)
    assert rows.IGNORED == -100
