"""Packs: every item in one of them, none cut, the same losses as one row at a time, and runs that resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from plans import finetune_plan, finetune_run, stored
from test_training import Recorder, train

from toolbox import datasets, embedded, loading, training
from toolbox.config import Home
from toolbox.errors import InputError, Interrupted
from toolbox.training import batches, layouts, rows, stages
from toolbox.training.packing import Packs
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

ROOM = 128
PACKED: dict[str, Any] = {
    "packing": True, "max_length": ROOM, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
    "max_steps": 4, "save_steps": 10, "eval_rows": 8, "eval_steps": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    spec = datasets.resolve("demo-persona", Home(Path("none")))
    return rows.encode("x", datasets.load(spec), loading.tokenizer(embedded.MODEL), ROOM).samples


@pytest.mark.parametrize("seed", [0, 1])
def test_every_item_is_in_one_pack_and_packs_are_nearly_full(tmp_path: Path, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, ROOM // 2, size=500).tolist()
    items = [Sample("x", number, [1] * size, [1] * size) for number, size in enumerate(sizes)]
    packs = Packs(stored(tmp_path / "rows", items), ROOM)
    assert sorted(item.number for pack in packs for item in pack.items) == list(range(500))
    assert all(pack.size <= ROOM for pack in packs)
    assert len(packs) <= 1.03 * sum(sizes) / ROOM
    made = finetune_plan(tmp_path, **PACKED).training
    steps = [batches.of_step(packs, step, made, seed) for step in range(batches.epoch_steps(len(packs), made))]
    assert sorted(item.number for step in steps for batch in step for item in batch) == list(range(500))
    assert all(sum(item.size for item in batch) <= 2 * ROOM for step in steps for batch in step)
    seen = {item.number for step in steps[:2] for batch in step for item in batch}
    assert set(packs.members(batches.of_steps(len(packs), 2, made, seed)).tolist()) == seen


def test_packed_losses_are_those_of_the_same_rows_one_at_a_time(tmp_path: Path, samples: list[Sample]) -> None:
    model = loading.base_model(embedded.MODEL, "float32", "cpu")
    padded = Forward(model, 0, "cpu", "float32")
    flat = layouts.choose(padded, samples, Recorder())  # type: ignore[arg-type]
    made = finetune_plan(tmp_path, **PACKED)
    stage = stages.stage_for(made)
    packs = Packs(stored(tmp_path / "rows", samples), ROOM)
    micro_batches = batches.of_step(packs, 0, made.training, made.seed)
    assert max(map(len, micro_batches)) > made.training.per_device_train_batch_size
    singles = [[item] for batch in micro_batches for item in batch]
    with torch.no_grad():
        model.eval()
        found = [
            float(sum(stage.loss(forward, items, stage.totals(forward, division)).loss for items in division))
            for forward, division in ((flat, micro_batches), (flat, singles))
        ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


@pytest.mark.slow
def test_a_packed_run_resumes_to_the_same_numbers(home: Path) -> None:
    straight, first, second = Recorder(), Recorder(stop_after=2), Recorder()
    expected = train(finetune_run(home, **PACKED), straight)
    run = finetune_run(home, **PACKED)
    with pytest.raises(Interrupted):
        train(run, first)
    result = train(run, second)
    assert first.losses() + second.losses() == straight.losses()
    assert (result["eval_loss"], result["tokens"]) == (expected["eval_loss"], expected["tokens"])
    assert expected["tokens"] > 0.9 * 4 * 4 * ROOM


def test_a_model_that_needs_padding_is_not_packed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "choose", lambda forward, *others: forward)
    with pytest.raises(InputError, match="can't be packed"):
        train(finetune_run(home, **PACKED))
