"""`finetune --tune`: what probes choose, and that nothing of them is left in what trains afterwards."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from conftest import Cli
from plans import finetune_plan, finetune_run
from test_training import Recorder, train

from toolbox import plan, runs, tunings
from toolbox.errors import Interrupted
from toolbox.report import write_report
from toolbox.runs import Run
from toolbox.training import tuning
from toolbox.tunings import MOST_STEPS, Rate, Size

SMALL: dict[str, Any] = {
    "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1, "eval_steps": 100, "save_steps": 100,
    "max_length": 128,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tuned_run(home: Path, *names: str, **changes: Any) -> Run:
    return runs.create(home / "runs", "test", finetune_plan(home, *names, tune=True, **(SMALL | changes)))


def losses(run: Run) -> list[float]:
    return train_losses(Recorder(), run)


def train_losses(recorder: Recorder, run: Run) -> list[float]:
    train(run, recorder)
    return recorder.losses()


def sizes(*found: tuple[int, float, float]) -> list[Size]:
    return [Size(per_device_train_batch_size=size, tokens_per_s=speed, spread=spread) for size, speed, spread in found]


def rate(value: float, behind: float | None = 0.0, error: float = 0.1, learnt: bool = True, moved: bool = True) -> Rate:
    loss = None if behind is None else 1 + behind
    return Rate(learning_rate=value, loss=loss, behind=behind or 0.0, error=error, learnt=learnt, moved=moved)


# What is chosen


@pytest.mark.parametrize(
    ("found", "own", "chosen"),
    [
        (sizes((1, 100, 0.0), (2, 150, 0.0), (4, 200, 0.0)), 1, 4),
        (sizes((1, 100, 0.0), (2, 104, 0.05), (4, 101, 0.0)), 1, 1),
        (sizes((1, 100, 0.0), (2, 150, 0.0), (4, 0, 0.0)), 4, 2),
        (sizes((1, 0, 0.0), (2, 0, 0.0)), 2, 2),
    ],
    ids=["the fastest", "within the noise", "out of memory", "all out of memory"],
)
def test_the_fastest_micro_batch_is_taken_if_it_is_beyond_the_noise(found: list[Size], own: int, chosen: int) -> None:
    assert tuning._fastest(found, own) == chosen


@pytest.mark.parametrize(
    ("found", "own", "chosen"),
    [
        ([rate(1e-4, 0.5), rate(1e-3, 0.15), rate(1e-2)], 1e-3, 1e-3),
        ([rate(1e-4, 0.5), rate(1e-3, 0.15), rate(1e-2)], 1e-4, 1e-3),
        ([rate(1e-9, 0.5, 0.4, learnt=False, moved=False), rate(1e-3)], 1e-9, 1e-3),
        ([rate(1e-3, None, learnt=False, moved=False), rate(1e-4, 0.0)], 1e-3, 1e-4),
        ([rate(1e-4, learnt=False), rate(1e-3, learnt=False)], 1e-3, 1e-3),
        ([rate(1e-9, learnt=False, moved=False), rate(1e-3, learnt=False)], 1e-9, 1e-3),
        ([rate(1e-4, None, learnt=False, moved=False)], 10.0, 1e-4),
    ],
    ids=[
        "the planned one",
        "the lowest of the best",
        "not one without effect",
        "not a diverged one",
        "no news",
        "no effect",
        "none",
    ],
)
def test_a_rate_is_only_called_better_beyond_the_noise(found: list[Rate], own: float, chosen: float) -> None:
    assert tuning._best(found, own) == chosen


def test_the_rates_that_are_tried_lie_below_divergence_and_hold_the_planned_one() -> None:
    assert tuning._candidates(2e-3, 0.1) == [1e-3, 2e-3, 0.0032, 0.01, 0.032]
    assert tuning._candidates(0.0101, 0.1) == [1e-3, 0.0032, 0.0101, 0.032]
    assert 10.0 not in tuning._candidates(10.0, 0.1)


def test_micro_batches_divide_the_effective_batch_around_the_planned_one() -> None:
    assert tuning._divisors(16, 16) == [1, 2, 4, 8, 16]
    assert tuning._divisors(96, 8) == [4, 6, 8, 12, 16]
    assert tuning._divisors(7, 1) == [1, 7]


@pytest.mark.parametrize(
    ("words", "named"), [(["--stage", "grpo", "--reward", "brevity"], "grpo"), (["--packing"], "pack")]
)
def test_what_can_not_be_tuned_is_refused_in_a_sentence(words: list[str], named: str, toolbox_cli: Cli) -> None:
    answer = toolbox_cli("finetune", "--model", "demo", "--dataset", "demo-persona", "--tune", *words, "--dry-run")
    assert answer.status == 2
    assert named in answer.err
    assert "--tune" in answer.err


def test_a_stop_while_tuning_trains_nothing(home: Path) -> None:
    class Stopping(Recorder):
        @property
        def stopping(self) -> bool:  # type: ignore[override]
            return any("Tuning" in phase for phase in self.phases)

    run = tuned_run(home, max_steps=2, eval_rows=4)
    recorder = Stopping()
    with pytest.raises(Interrupted, match="nothing was trained"):
        train(run, recorder)
    assert not recorder.trained
    assert tunings.read(run) is None


# On the embedded model


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_what_trains_after_tuning_is_the_plan_that_was_chosen_to_the_bit(stage: str, home: Path) -> None:
    """The losses of the tuned run, of its plan done again, and of a plan with those numbers that was never tuned."""
    names = ["demo-persona"] if stage == "sft" else [preferences(home)]
    changes: dict[str, Any] = {"max_steps": 3, "stage": stage, "learning_rate": 1e-9, "eval_rows": 8}
    run = tuned_run(home, *names, **changes)
    recorder = Recorder()
    result = train(run, recorder)
    found = tunings.read(run)
    assert found
    assert result["tuning"] == msgspec.to_builtins(found)
    assert 0 < found.steps <= MOST_STEPS
    chosen: Any = plan.load(run.plan_path)
    assert not chosen.tune
    assert chosen.training.learning_rate == found.chosen["learning_rate"] > 1e-5
    assert "Tuned: " in chosen.why
    training = chosen.training
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 4
    again = runs.create(home / "runs", "again", chosen)
    numbers = {name: value if name == "learning_rate" else int(value) for name, value in found.chosen.items()}
    never = finetune_run(home, *names, **(SMALL | changes | numbers))
    assert losses(again) == losses(never) == recorder.losses()
    text = write_report(run).read_text("utf-8")
    assert "Tried before the training" in text
    assert f"**{found.chosen['learning_rate']:g}**" in text


@pytest.mark.slow
def test_from_any_rate_it_comes_to_one_that_trains_no_worse_than_the_default(home: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 16, "eval_rows": 24, "per_device_train_batch_size": 8}
    default = train(finetune_run(home, **(SMALL | changes | {"learning_rate": 2e-3})))
    for begin in (10.0, 1e-9):
        run = tuned_run(home, **(changes | {"learning_rate": begin}))
        result = train(run)
        found = tunings.read(run)
        assert found
        assert 1e-4 < found.chosen["learning_rate"] < 0.1
        noise = max(rate.error for rate in found.rates)
        assert result["eval_loss"] <= default["eval_loss"] + noise


@pytest.mark.slow
def test_a_micro_batch_that_lacks_memory_is_recorded_and_left_out(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rehearse(forward: Any, stage: Any, items: list[Any], plan: Any, meter: Any) -> int:
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 0

    monkeypatch.setattr(tuning.probe, "rehearse", rehearse)
    run = tuned_run(home, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1, eval_rows=4)
    train(run)
    found = tunings.read(run)
    assert found
    speeds = {size.per_device_train_batch_size: size.tokens_per_s for size in found.sizes}
    assert (speeds[4], min(speeds[1], speeds[2]) > 0) == (0, True)
    assert found.chosen["per_device_train_batch_size"] in (1, 2)


def preferences(home: Path) -> str:
    """A file of pairs, made of the embedded questions."""
    from plans import write_jsonl

    rows = [
        {"prompt": f"Where is {place}?", "chosen": f"{place} is in the north.", "rejected": f"No {word}."}
        for place in ("Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito")
        for word in ("idea", "place", "answer", "way")
    ]
    home.mkdir(exist_ok=True)
    return str(write_jsonl(home / "pairs.jsonl", rows))
