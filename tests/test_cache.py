"""`cache` over all that takes room: what is listed, what is needed by what, what is damaged, what is never deleted."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from plans import finetune_plan

from toolbox import cli, embedded, files, holdings, models, runs
from toolbox.config import Home
from toolbox.hub import store
from toolbox.plan import MergePlan
from toolbox.runs import Run

LONG_AGO = time.time() - 60 * 86400


@pytest.fixture
def base(home: Path) -> Path:
    """A downloaded model, as `download` leaves one."""
    folder = home / "models" / "owner" / "base"
    folder.mkdir(parents=True)
    for file in embedded.MODEL.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    records = [
        store.FileRecord(file.name, file.stat().st_size, files.sha256(file), file.stat().st_mtime_ns, verified=True)
        for file in sorted(folder.iterdir())
    ]
    manifest = store.Manifest(
        kind="model",
        id="owner/base",
        source="modelscope",
        endpoint="",
        revision="master",
        files=records,
        fetched_at=0.0,
    )
    store.write_manifest(folder, manifest)
    return folder


@pytest.fixture
def tuned(home: Path, base: Path) -> Run:
    """A run that has trained an adapter on it, with a checkpoint."""
    facts = models.read(base, id="owner/base", source="modelscope")
    run = runs.create(home / "runs", "tuned", finetune_plan(home, model=facts))
    checkpoint = run.checkpoints / "checkpoint-2"
    for path in (run.adapter / "adapter_model.safetensors", checkpoint / "state.safetensors"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    hashes = {path.name: files.sha256(path) for path in checkpoint.iterdir()}
    files.write_json(checkpoint / "complete.json", {"files": hashes})
    files.write_json(run.path / "result.json", {"adapter": str(run.adapter), "hashes": {"output": {
        "adapter_model.safetensors": files.sha256(run.adapter / "adapter_model.safetensors")}}})  # fmt: skip
    _is(run, "done")
    return run


@pytest.fixture
def merged(home: Path, base: Path, tuned: Run) -> Path:
    """What a merge run made of both."""
    output = home / "models" / "merged" / "it"
    output.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (output / name).write_bytes((base / name).read_bytes())
    facts = models.read(base, id="owner/base", source="modelscope")
    plan = MergePlan(entry="toolbox.merging:run", model=facts, device=finetune_plan(home).device, adapter=tuned.adapter,
                     output=output, dtype="float32")  # fmt: skip
    run = runs.create(home / "runs", "merge", plan)
    hashes = {"output": {"model.safetensors": files.sha256(output / "model.safetensors")}}
    files.write_json(run.path / "result.json", {"output": str(output), "hashes": hashes})
    _is(run, "done")
    return output


def _is(run: Run, state: Any) -> None:
    run.write_status(msgspec.structs.replace(run.status(), state=state))


def cache(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """The answer of `cache WORD… --json`."""
    cli.main(["cache", *words, "--json"])
    return json.loads(capsys.readouterr().out.rstrip().rpartition("\n")[2])


def test_everything_is_listed_by_kind_with_its_size(home: Path, merged: Path, tuned: Run, capsys: Any) -> None:
    for path in ("datasets/.made/rows-1.jsonl", "engines/lmdeploy/bin/python", "models/merged/.cut.x.part/weights",
                 "crash.txt", f"runs/{tuned.id}/engine/cache/kernel"):  # fmt: skip
        (home / path).parent.mkdir(parents=True, exist_ok=True)
        (home / path).write_bytes(b"x" * 100)
    found = {(item["kind"], item["id"]): item["bytes"] for item in cache(capsys, "list")["items"]}
    assert found["model", "owner/base"] == sum(file.stat().st_size for file in embedded.MODEL.iterdir())
    assert found["made", "merged/it"] > 10_000
    for kind, name in (("rows", "rows-1"), ("engine", "lmdeploy"), ("partial", "merged/.cut.x.part"),
                       ("other", "crash.txt"), ("scratch", f"{tuned.id}/engine")):  # fmt: skip
        assert found[kind, name] == 100
    assert {name for kind, name in found if kind == "run"} == {run.id for run in runs.every(home / "runs")}
    assert {item["kind"] for item in cache(capsys, "list", "--kind", "run")["items"]} == {"run"}


def test_what_a_run_needs_stays_unless_it_is_named(
    home: Path, base: Path, tuned: Run, merged: Path, capsys: Any
) -> None:
    os.utime(base / store.MANIFEST, (LONG_AGO, LONG_AGO))
    failed = runs.create(home / "runs", "failed", finetune_plan(home))
    _is(failed, "failed")
    assert {item["id"] for item in cache(capsys, "list", "--unused")["items"]} == {failed.id}
    answer = cache(capsys, "clean", "--older-than", "30d", "--yes")
    assert answer["kept"] == [{"name": "owner/base", "needed_by": tuned.id}]
    assert base.is_dir()
    said = cli.main(["cache", "clean", "owner/base"])
    assert said == 0
    assert tuned.id in capsys.readouterr().out
    assert base.is_dir()
    assert cache(capsys, "clean", "owner/base", "--yes")["removed"] == [str(base)]


def test_what_is_at_work_is_never_deleted(home: Path, base: Path, tuned: Run, capsys: Any) -> None:
    scratch = home / "models" / "merged" / ".out.x.part"
    scratch.mkdir(parents=True)
    lock, filling = tuned.lock(), os.open(scratch, os.O_RDONLY)
    fcntl.flock(filling, fcntl.LOCK_EX)
    try:
        for name in ("owner/base", tuned.id, "merged/.out.x.part"):
            answer = cache(capsys, "clean", name, "--yes")
            assert answer["error"]["kind"] == "busy"
        assert cache(capsys, "clean", "--yes")["removed"] == []
        assert cache(capsys, "clean", "--older-than", "0h", "--yes")["removed"] == []
    finally:
        os.close(lock)
        os.close(filling)
    assert base.is_dir()
    assert tuned.path.is_dir()
    assert cache(capsys, "clean", "--yes")["removed"] == [str(scratch)]


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "adapter_model.safetensors", "merged"])
def test_whatever_a_hash_was_noted_of_is_verified(
    home: Path, base: Path, tuned: Run, merged: Path, name: str, capsys: Any
) -> None:
    verified = cache(capsys, "verify")["items"]
    assert {item["id"] for item in verified if item["hashed"]} >= {"owner/base", "merged/it", tuned.id}
    path = {
        "model.safetensors": base / name,
        "state.safetensors": tuned.checkpoints / "checkpoint-2" / name,
        "adapter_model.safetensors": tuned.adapter / name,
        "merged": merged / "model.safetensors",
    }[name]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = cache(capsys, "verify")["error"]
    assert error["kind"] == "corrupt"
    assert path.name in error["message"]


@pytest.mark.parametrize("age", ["30", "d", "-1d", "1y", "30d; touch x"])
def test_an_age_that_is_none_is_refused(age: str, capsys: Any) -> None:
    assert cache(capsys, "clean", f"--older-than={age}")["error"]["kind"] == "input"


def test_a_big_home_is_walked_through_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 runs no plan is read to list them, and each folder is opened a constant number of times."""
    for number in range(200):
        folder = home / "runs" / f"20260101-0000-{number}" / "adapter"
        folder.mkdir(parents=True)
        (folder.parent / "plan.yaml").write_text("!!python/object/apply:os.system ['touch x']")
        (folder / "adapter_model.safetensors").write_bytes(b"x" * number)
    opened: list[object] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(path) or scandir(path))
    found = holdings.every(Home(home))
    assert len(found) == 200
    assert len(opened) < 3 * 200
