"""Faults at every stage: broken lines, odd encodings, Ctrl-C, a loss that is no number (rows of one test each)."""

import re
import signal
from pathlib import Path
from typing import Any

import msgspec
import pexpect
import pytest
import torch
from conftest import Cli
from plans import finetune_run, write_jsonl
from terminals import ctrl_c_once, in_terminal
from test_training import Recorder, poisoned_model, train

from toolbox import datasets, runs, stages
from toolbox.config import Home
from toolbox.datasets import DatasetSpec
from toolbox.errors import DivergedError, InputError
from toolbox.runs import Run
from toolbox.training import checkpoints

REWARDED: dict[str, dict[str, Any]] = {
    "ppo": {"reward_funcs": ["contains:a"], "response_length": 6, "num_ppo_epochs": 2},
    "grpo": {"reward_funcs": ["contains:a"], "max_completion_length": 6, "num_generations": 2},
}
"""What judges the answers of the stages that write their own, and how long they are."""
KINDS = [stage if stage in ("sft", "dpo") else pytest.param(stage, marks=pytest.mark.slow) for stage in stages.NAMES]
"""One stage of each kind of rows in the fast set."""
BROKEN = 7
PLACES = ["Paris", "Rome", "Oslo", "Cairo", "Lima", "Quito", "Bern", "Riga", "Kyiv", "Doha", "北京", "上海"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def rows(stage: str) -> list[dict[str, Any]]:
    """24 rows that fit the stage, in Chinese and English."""
    asked = [
        (f"{question} {place}? 它在哪里？", f"{place} is lovely. 很美。", f"No {place}.")
        for question in ("What is", "Where is")
        for place in PLACES
    ]
    match stage:
        case "pt":
            return [{"text": f"{question} {wanted}"} for question, wanted, _ in asked]
        case "ppo" | "grpo":
            return [{"prompt": question} for question, _, _ in asked]
        case "sft":
            return [{"instruction": question, "output": wanted} for question, wanted, _ in asked]
        case "kto":
            judged = (
                (question, answers[number % 2], number % 2 == 0) for number, (question, *answers) in enumerate(asked)
            )
            return [{"prompt": question, "completion": answer, "label": label} for question, answer, label in judged]
        case _:
            return [{"prompt": question, "chosen": wanted, "rejected": other} for question, wanted, other in asked]


def lines(stage: str) -> list[str]:
    return [msgspec.json.encode(row).decode() for row in rows(stage)]


def stage_run(home: Path, stage: str, spec: DatasetSpec, **changes: Any) -> Run:
    kind = stages.OPTIONS.get(stage)
    options = kind(**REWARDED.get(stage, {})) if kind else None
    return finetune_run(home, stage=stage, datasets=[spec], options=options, **changes)


# 14: a bad line


@pytest.mark.parametrize("stage", KINDS)
def test_a_bad_line_is_named_with_its_text_or_skipped_and_counted(stage: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    torn = lines(stage)
    torn[BROKEN - 1] = torn[BROKEN - 1][:-9]
    path.write_text("\n".join(torn), "utf-8")
    with pytest.raises(InputError) as stopped:
        datasets.resolve(str(path), Home(home))
    assert str(BROKEN) in stopped.value.message
    assert torn[BROKEN - 1][:20] in stopped.value.message
    assert "--skip-broken" in stopped.value.remedy
    spec = datasets.resolve(str(path), Home(home), skip_broken=True)
    assert [fault.number for fault in spec.faults] == [BROKEN]
    run = stage_run(home, stage, spec, max_steps=1, eval_rows=0)
    result = train(run)
    assert (result["rows_skipped"], result["rows"]) == (1, len(torn) - 1)


# 15: odd files


@pytest.mark.parametrize("stage", stages.NAMES)
@pytest.mark.parametrize(
    ("name", "encoding"), [("marked.jsonl", "utf-8-sig"), ("gbk.jsonl", "gb18030"), ("lines.json", "utf-8")]
)
def test_odd_files_are_read_as_the_plain_one(stage: str, name: str, encoding: str, home: Path, tmp_path: Path) -> None:
    plain, odd = tmp_path / "plain.jsonl", tmp_path / name
    plain.write_text("\n".join(lines(stage)), "utf-8")
    odd.write_text("\n".join(lines(stage)), encoding)
    expected, found = (datasets.resolve(str(path), Home(home)) for path in (plain, odd))
    assert datasets.load(found) == datasets.load(expected)
    assert stage in datasets.STAGES[found.kind]


@pytest.mark.parametrize("stage", stages.NAMES)
def test_an_empty_field_is_named_with_its_line(stage: str, home: Path, tmp_path: Path) -> None:
    spoilt = rows(stage)
    column = list(spoilt[0])[:2][-1]
    spoilt[BROKEN - 1][column] = ""
    path = write_jsonl(tmp_path / "empty.jsonl", spoilt)
    with pytest.raises(InputError, match=rf"\b{BROKEN}\b"):
        datasets.resolve(str(path), Home(home))
    assert datasets.resolve(str(path), Home(home), skip_broken=True).skipped == 1


# 19: Ctrl-C


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.NAMES)
def test_ctrl_c_once_saves_and_the_resumed_run_ends_as_a_straight_one(
    stage: str, home: Path, tmp_path: Path, toolbox_environ: dict[str, str], toolbox_cli: Cli
) -> None:
    words = [*command(stage, tmp_path), "--set", "max_steps=40", "save_steps=100"]
    straight = toolbox_cli(*words, "--json").done().json
    front = in_terminal(toolbox_environ, "-m", "toolbox", *words)
    front.expect(r" [1-9]\d*/40")
    ctrl_c_once(front)
    run = newest(home)
    assert (run.status().state, run.status().resumable) == ("interrupted", True)
    resumed = toolbox_cli("runs", "resume", run.id, "--json").done().json
    for name in ("train_loss", "eval_loss", "eval"):
        assert resumed[name] == straight[name], name


@pytest.mark.slow
@pytest.mark.parametrize("stage", stages.NAMES)
def test_ctrl_c_twice_quits_at_once_and_nothing_is_torn(
    stage: str, home: Path, tmp_path: Path, toolbox_environ: dict[str, str], toolbox_cli: Cli
) -> None:
    front = in_terminal(
        toolbox_environ, "-m", "toolbox", *command(stage, tmp_path), "--set", "max_steps=4000", "save_steps=1"
    )
    front.expect(r" [2-9]\d*/4000")
    front.sendintr()
    front.sendintr()
    front.expect(pexpect.EOF)
    front.close()
    assert front.exitstatus == 130
    run = newest(home)
    assert not run.alive()
    kept = checkpoints.newest(run.checkpoints)
    assert kept is not None
    assert all("step" in line for line in run.metrics())
    resumed = in_terminal(toolbox_environ, "-m", "toolbox", "runs", "resume", run.id)
    resumed.expect(rf"Going on after step {checkpoints.step_of(kept)}|{checkpoints.step_of(kept)}/4000")
    resumed.kill(signal.SIGINT)
    resumed.expect(pexpect.EOF)
    resumed.close()


def command(stage: str, folder: Path) -> list[str]:
    data = write_jsonl(folder / f"{stage}.jsonl", rows(stage))
    judged = [
        word
        for name, value in REWARDED.get(stage, {}).items()
        for word in ("--set", f"{stage}.{name}={msgspec.json.encode(value).decode()}")
    ]
    return ["finetune", "--model", "demo", "--dataset", str(data), "--stage", stage, *judged, "--yes"]


def newest(home: Path) -> Run:
    return runs.every(home / "runs")[0]


# 24: a loss that is no number


@pytest.mark.parametrize("stage", KINDS)
def test_a_loss_that_is_no_number_names_the_very_row_among_many(stage: str, home: Path, tmp_path: Path) -> None:
    """As many rows a step as there are: only the poisoned one is named, whether it is trained on or held out."""
    facts = poisoned_model(tmp_path / "poisoned", "Z")
    spoilt = rows(stage)
    last = list(spoilt[0])[1] if stage in ("sft", "kto") else list(spoilt[0])[-1]
    spoilt[BROKEN - 1][last] += " Z"
    path = write_jsonl(tmp_path / "poisoned.jsonl", spoilt)
    for held_out in (0, 23):
        changes: dict[str, Any] = {"per_device_train_batch_size": 12, "max_steps": 4, "eval_rows": held_out}
        run = stage_run(home, stage, datasets.resolve(str(path), Home(home)), model=facts, **changes)
        with pytest.raises(DivergedError) as error:
            train(run, Recorder())
        named = [int(number) for number in re.findall(r"poisoned\.jsonl:(\d+)", error.value.message)]
        assert BROKEN in named
        assert len(named) <= (2 if stage == "kto" else 1)  # another row's KL is measured with that answer
        kept = checkpoints.newest(run.checkpoints)
        assert kept is None or checkpoints.step_of(kept) == 0
