"""Trackers: told every step, never able to end or stall a training; wandb and SwanLab with the real packages."""

import json
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from plans import finetune_plan, finetune_run
from test_plugins import _forgotten  # noqa: F401  (what a test loads is gone after it)
from test_training import Recorder, train

from toolbox import plugins
from toolbox.errors import Interrupted
from toolbox.training import trackers

BLOCK = 1 << 15
CANARIES = {"WANDB_API_KEY": "0123456789abcdef" * 2 + "cafebabe", "SWANLAB_API_KEY": "swan-canary-of-a-key"}
TRACKERS = """
import threading
from toolbox.plugins import register

TOLD, HANG = [], threading.Event()

class Tracker:
    def __init__(self, plan, run, step):
        self.step = step
    def log(self, step, metrics):
        TOLD.append((self.step, step, metrics["loss"] if "loss" in metrics else None))
    def close(self):
        TOLD.append("closed")

class Failing(Tracker):
    def log(self, step, metrics):
        raise OSError("no network")

class Hanging(Tracker):
    def __init__(self, plan, run, step):
        HANG.wait()

register("tracker", "told")(Tracker)
register("tracker", "failing")(Failing)
register("tracker", "hanging")(Hanging)
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Any]:
    """The trackers above, as a plugin; what hangs is let go at the end."""
    path = tmp_path / "trackers.py"
    path.write_text(TRACKERS)
    plugins.load(path)
    module = plugins.find("tracker", "told").__init__.__globals__
    yield module
    module["HANG"].set()


def test_one_that_fails_or_hangs_is_said_once_and_the_training_is_the_same(
    own: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "CLOSING_S", 0.5)
    expected, found = Recorder(), Recorder()
    changes: dict[str, Any] = {"max_steps": 3, "eval_rows": 0, "save_steps": 9}
    train(finetune_run(home, report_to=[], **changes), expected)
    train(finetune_run(home, report_to=["failing", "hanging", "told"], **changes), found)
    assert found.losses() == expected.losses()
    assert own["TOLD"] == [(0, step, loss) for step, loss in enumerate(found.losses(), 1)] + ["closed"]
    said = [phase for phase in found.phases if "left out" in phase]
    assert len(said) == 2
    assert "trackers.py is broken, line 17: OSError: no network" in said[0]
    assert "hanging is left out from here on: it does not end" in said[1]


def test_one_that_does_not_keep_up_is_left_out(own: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "WAITING", 2)
    monkeypatch.setattr(trackers, "CLOSING_S", 0.1)
    reporter = Recorder()
    run = finetune_run(home)
    with trackers.Trackers(finetune_plan(home, report_to=["hanging"]), run, 0, reporter) as both:
        for step in range(1, 6):
            both.log(step, {"loss": 1.0})
    assert len(reporter.phases) == 1
    assert "it does not keep up" in reporter.phases[0]


def test_what_is_described_names_no_folder_of_this_machine(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("")
    made = finetune_plan(home, report_to=[])
    made.plugins, made.tensorboard = [plugins.load(path)], tmp_path
    told = trackers.described(made)
    assert str(tmp_path) not in str(told)
    assert str(made.model.path) not in str(told)
    assert (told["plugins"][0]["name"], told["training"]["learning_rate"]) == ("mine.py", 5e-3)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_wandb_and_swanlab_offline_are_told_everything_but_the_keys(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Stopped after two steps and gone on with: the same run to wandb, all steps in both; no key in any file."""
    for name in ("wandb", "swanlab"):
        pytest.importorskip(name)
    for name, value in {**CANARIES, "WANDB_MODE": "offline", "SWANLAB_MODE": "offline"}.items():
        monkeypatch.setenv(name, value)
    changes: dict[str, Any] = {"max_steps": 4, "eval_rows": 0, "save_steps": 2}
    expected = Recorder()
    train(finetune_run(home, report_to=[], **changes), expected)
    run, before, after = finetune_run(home, report_to=["wandb", "swanlab"], **changes), Recorder(2), Recorder()
    with pytest.raises(Interrupted):
        train(run, before)
    train(run, after)
    assert before.losses() + after.losses() == expected.losses()
    assert not [phase for phase in before.phases + after.phases if "left out" in phase]
    offline = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(offline) == 2
    assert {path.name for path in offline} == {f"run-{trackers.identity(run)}.wandb"}, "one run to wandb"
    logged = [step for path in offline for step in history(path)]
    assert [step["train/loss"] for step in logged] == pytest.approx(expected.losses())
    assert len(list((run.path / "swanlog").glob("run-*"))) == 2
    for path in home.rglob("*"):
        assert not path.is_file() or not any(key.encode() in path.read_bytes() for key in CANARIES.values()), path
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("tracker ")]


def history(path: Path) -> Iterator[dict[str, float]]:
    """The steps in a .wandb file: LevelDB's log format behind a header of 7 bytes, records of wandb's protobuf."""
    from wandb.proto import wandb_internal_pb2

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if BLOCK - place % BLOCK < 7:
            place += BLOCK - place % BLOCK
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a full record, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                yield {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
                }
