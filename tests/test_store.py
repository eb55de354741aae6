"""The store of encoded rows: the same however it was made, reused only where it is whole and ours; the split."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from plans import finetune_plan, finetune_run, write_jsonl
from test_training import Recorder, train

from toolbox import datasets, embedded, loading, plan, runs
from toolbox.config import Home
from toolbox.errors import InputError, Interrupted
from toolbox.runs import Run, Silent
from toolbox.training import encoding, preparing, store
from toolbox.training.preparing import Prepared
from toolbox.training.stages import stage_for


def conversation(question: str, answer: str = "A model.") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def questions(count: int) -> list[dict[str, Any]]:
    return [conversation(f"Question {number}: who are you?") for number in range(count)]


def prepared(run: Run, reporter: Any = None) -> Prepared:
    made: Any = plan.load(run.plan_path)
    return preparing.prepare(made, stage_for(made), loading.tokenizer(embedded.MODEL), run, reporter or Silent())


def numbers(items: Any) -> list[int]:
    return [item.number for item in items]


def test_held_out_rows_are_drawn_once_and_never_trained_on(home: Path, tmp_path: Path) -> None:
    """Also where rows are taken several times, and where the data say the same twice."""
    rows = [*questions(40), *questions(10)]
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    run = finetune_run(home, f"{path}*2.5", eval_rows=12)
    made = prepared(run)
    trained, held_out = numbers(made.samples), numbers(made.held_out)
    assert len(held_out) == len(set(held_out)) == 12
    said = {json.dumps(rows[number - 1]) for number in held_out}
    assert not said & {json.dumps(rows[number - 1]) for number in trained}
    twice = [number for number in range(1, 51) if number not in held_out and json.dumps(rows[number - 1]) in said]
    assert made.twice == len(twice) > 0
    assert {trained.count(number) for number in set(trained)} == {2, 3}
    assert len(set(trained)) + len(twice) + 12 == 50
    assert len(made.samples.store) == 50  # a row that is taken three times is kept once
    assert json.loads((run.path / "held_out.json").read_text()) == {f"{path}*2.5": sorted(held_out)}
    assert numbers(prepared(finetune_run(home, f"{path}*2.5", eval_rows=12)).held_out) == held_out


def test_a_resumed_run_reads_its_store_and_not_the_data_and_a_finished_one_leaves_none(
    home: Path, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", questions(40))
    run = finetune_run(home, str(path), max_steps=3)
    with pytest.raises(Interrupted):
        train(run, Recorder(stop_after=1))
    path.unlink()
    second = Recorder()
    train(run, second)
    assert "Reading the data" not in second.phases
    assert not (run.path / preparing.FOLDER).exists()


@pytest.mark.parametrize("name", [store.ITEMS, store.INDEX, store.MARKER])
def test_a_torn_store_is_made_again(home: Path, name: str) -> None:
    run = finetune_run(home)
    expected = list(prepared(run).samples)
    file = run.path / preparing.FOLDER / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    reporter = Recorder()
    assert list(prepared(run, reporter).samples) == expected
    assert reporter.phases == ["Reading the data"]


def test_a_store_of_another_user_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finetune_run(home)
    prepared(run)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(InputError, match="another user"):
        prepared(run)
    monkeypatch.undo()
    marker = run.path / preparing.FOLDER / store.MARKER
    marker.rename(run.path / "elsewhere")
    marker.symlink_to(run.path / "elsewhere")
    with pytest.raises(InputError, match="or is a link"):
        prepared(run)


def test_several_processes_make_the_same_store(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = prepared(finetune_run(home))
    monkeypatch.setattr(preparing, "MANY_ROWS", 1)
    monkeypatch.setattr(preparing, "CHUNK_ROWS", 16)
    monkeypatch.setattr("toolbox.environment.threads", lambda: 2)
    several = prepared(finetune_run(home))
    assert sorted(map(repr, several.samples)) == sorted(map(repr, alone.samples))
    assert several.held_out.store.facts == alone.held_out.store.facts
    broken, made = loading.tokenizer(embedded.MODEL), finetune_plan(home)
    broken.chat_template = ""
    with pytest.raises(InputError, match="chat template"):
        list(encoding.ordered(preparing._chunks(made, False), encoding.Encoder(stage_for(made), broken, 64), 2))


def test_a_stop_while_rows_are_encoded_leaves_nothing(home: Path) -> None:
    run = finetune_run(home)
    with pytest.raises(Interrupted, match="before the first step"):
        prepared(run, Recorder(stop_after=0))
    assert not list(run.path.glob("*rows*"))


def test_a_selection_reads_only_what_is_asked_for(home: Path) -> None:
    made = prepared(runs.create(home / "runs", "x", finetune_plan(home)))
    ordered = made.samples.by_size()
    sizes = [item.size for item in ordered]
    assert sizes == sorted(sizes) == ordered.sizes.tolist()
    assert [len(part) for part in made.samples[:10].in_parts(4)] == [4, 4, 2]
    assert made.samples[:10][3] == made.samples[3]
    probes = made.probes()
    assert probes[0].size == min(sizes)
    assert probes[-1].size == max(*made.samples.sizes.tolist(), *made.held_out.sizes.tolist())
    assert np.array_equal(np.unique(made.samples.places), made.samples.places)


def test_rows_of_an_evaluation_set_are_left_out_of_the_training(home: Path, tmp_path: Path) -> None:
    rows = questions(30)
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    other = write_jsonl(tmp_path / "eval.jsonl", [*rows[:3], conversation("Something else?")])
    spec = datasets.resolve(str(other), Home(home))
    made = prepared(finetune_run(home, str(path), eval_rows=0, eval_datasets=[spec]))
    assert [(item.dataset, item.number) for item in made.held_out] == [(str(other), line) for line in range(1, 5)]
    assert (numbers(made.samples), made.twice) == (list(range(4, 31)), 3)
