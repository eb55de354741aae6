"""Checkpoints: complete or absent, torn ones left out, never a pickle, a full disk leaves the one before."""

import errno
import itertools
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from plans import finetune_run
from safetensors.torch import save_file

from toolbox import plan, training
from toolbox.errors import Interrupted, ToolboxError
from toolbox.runs import Run, Silent
from toolbox.training import checkpoints, optim


def write(folder: Path) -> None:
    save_file({"w": torch.arange(4.0)}, folder / "weights.safetensors")
    (folder / "state.json").write_text("{}")


def test_a_checkpoint_is_found_and_the_one_before_it_removed(tmp_path: Path) -> None:
    first = checkpoints.save(tmp_path, 2, write)
    assert checkpoints.newest(tmp_path) == first
    second = checkpoints.save(tmp_path, 10, write)
    assert checkpoints.newest(tmp_path) == second
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, 2, write)
    assert checkpoints.complete(checkpoints.save(tmp_path, 2, write))


@pytest.mark.parametrize("name", ["weights.safetensors", "state.json", checkpoints.MARKER])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_torn_checkpoint_is_left_out_for_the_one_before(tmp_path: Path, name: str, damage: str) -> None:
    older = checkpoints.save(tmp_path, 2, write)
    older.rename(tmp_path / "aside")
    newer = checkpoints.save(tmp_path, 4, write)
    (tmp_path / "aside").rename(older)
    spoil(newer / name, damage)
    assert checkpoints.newest(tmp_path) == older


@pytest.mark.parametrize("step", [4, 2], ids=["the next step", "the same step again"])
def test_a_kill_at_every_file_operation_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path, step: int) -> None:
    """The n-th life ends, by kill -9, just before its n-th file operation; the last one comes through."""
    for life in itertools.count(1):
        folder = tmp_path / str(life)
        checkpoints.save(folder, 2, lambda scratch: scratch.joinpath("state.json").write_text('{"step": 2}') and None)
        child = os.fork()
        if child == 0:
            try:
                die_before(life)
                checkpoints.save(folder, step, lambda scratch: scratch.joinpath("state.json").write_text("{}") and None)
                os._exit(0)
            finally:  # whatever happens, this process is no second pytest
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = checkpoints.newest(folder)
        assert found is not None
        assert checkpoints.complete(found)
        assert checkpoints.step_of(found) in (2, step)
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert life > (20 if step == 4 else 2)
    assert checkpoints.step_of(found) == step


def die_before(operation: int) -> None:
    """Kill this process where it is about to touch the file system for the `operation`-th time."""
    left = [operation]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" or event.startswith(("os.", "shutil.")):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def spoil(path: Path, damage: str) -> None:
    data = path.read_bytes()
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])


def test_what_a_killed_process_left_behind_is_removed(tmp_path: Path) -> None:
    kept = checkpoints.save(tmp_path, 2, write)
    for leftover in (".checkpoint-4.abc.part", ".checkpoint-1.old"):
        (tmp_path / leftover).mkdir()
        write(tmp_path / leftover)
    assert checkpoints.newest(tmp_path) == kept
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O error")])
def test_a_disk_that_fails_leaves_the_checkpoint_before(tmp_path: Path, error: OSError) -> None:
    kept = checkpoints.save(tmp_path, 2, write)

    def fail(folder: Path) -> None:
        write(folder)
        raise error

    with pytest.raises(ToolboxError, match="step 4") as raised:
        checkpoints.save(tmp_path, 4, fail)
    assert ("disk is full" in raised.value.message) == (error.errno == errno.ENOSPC)
    assert checkpoints.newest(tmp_path) == kept
    assert list(tmp_path.iterdir()) == [kept]


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A disk of 3 MiB; skips where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(small_disk: Path) -> None:
    kept = checkpoints.save(small_disk, 2, write)

    def too_much(folder: Path) -> None:
        save_file({"w": torch.zeros(1 << 20)}, folder / "weights.safetensors")

    with pytest.raises(ToolboxError, match="the disk is full"):
        checkpoints.save(small_disk, 4, too_much)
    assert checkpoints.newest(small_disk) == kept


def test_optimizer_state_comes_back_as_it_was_without_a_pickle(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    weight.sum().backward()
    optimizer.step()
    tensors: dict[str, torch.Tensor] = {}
    kept = optim.split(optimizer.state_dict(), tensors)
    again = torch.optim.AdamW([weight], lr=9.0)
    again.load_state_dict(optim.join(kept, tensors))
    assert again.param_groups[0]["lr"] == 1e-3
    assert all(torch.equal(again.state[weight][name], value) for name, value in optimizer.state[weight].items())


class Bomb:
    """Unpickled, it would leave a trace."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._trace),)


def test_no_pickle_in_a_checkpoint_is_ever_read(home: Path, tmp_path: Path) -> None:
    run, trace = finetune_run(home, max_steps=2), tmp_path / "trace"
    bomb = pickle.dumps(Bomb(trace))

    def hostile(folder: Path) -> None:
        for name in ("optimizer.pt", "rng_state.pth", "adapter_model.bin", "adapter_model.safetensors"):
            (folder / name).write_bytes(bomb)
        for name in ("state.json", "state.safetensors"):
            (folder / name).write_bytes(bomb)

    checkpoints.save(run.checkpoints, 1, hostile)
    with pytest.raises(ToolboxError, match="can't be read"):
        resume(run)
    assert not trace.exists()


def resume(run: Run) -> dict[str, Any]:
    return training.run(plan.load(run.plan_path), run, Silent())  # type: ignore[arg-type]


class StopAfter(Silent):
    """Asks to stop after some steps."""

    def __init__(self, steps: int) -> None:
        self._left = steps

    @property
    def stopping(self) -> bool:  # type: ignore[override]
        return self._left <= 0

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        self._left -= "loss" in metrics


def test_a_run_whose_only_checkpoint_is_torn_starts_again_and_ends_right(home: Path) -> None:
    expected = resume(finetune_run(home, max_steps=3))
    run = finetune_run(home, max_steps=3)
    with pytest.raises(Interrupted):
        training.run(plan.load(run.plan_path), run, StopAfter(2))  # type: ignore[arg-type]
    kept = checkpoints.newest(run.checkpoints)
    assert kept is not None
    spoil(kept / "state.safetensors", "truncate")
    assert resume(run)["train_loss"] == expected["train_loss"]
