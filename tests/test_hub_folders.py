"""What a hub may name, and what becomes of it on the disk: paths kept inside, locks, half replacements, torn files."""

# ruff: noqa: F811

import fcntl
import threading
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from test_hub import FILES, ID, WEIGHTS, ask, content, hub, source  # noqa: F401

from toolbox import files
from toolbox.config import Home
from toolbox.errors import BusyError, HubError, InputError
from toolbox.hub import fetching, local_copy, names, sources, store
from toolbox.hub.checking import changed, torn

# Names from outside (attack rows 9 and 10).


@pytest.mark.parametrize(
    "path",
    [
        "../../x", "/etc/x", "a\\..\\x", "C:\\x", "a/../../x", "./x", "a//x", "", "a\nb", "a\0b", "x\u202egnp.exe",
        "x" * 250, "/".join(["x" * 200] * 6), store.MANIFEST, f"model.safetensors{sources.PARTIAL}",
        "MODEL.safetensors", "说明/自述.MD", "说明", "ｍodel.safetensors",
    ],
)  # fmt: skip
def test_a_listing_that_leads_outside_is_refused(hub: LoopbackHub, home: Path, source: str, path: str) -> None:
    hub.listed["config.json"] = {"Path": path, "Name": path}
    with pytest.raises(HubError):
        fetching.fetch(ask(hub, home, source=source))
    assert hub.sent == 0


@pytest.mark.parametrize("path", ["CON", "aux.json", "nul.txt", "a:b.json", "trailing. ", "-rf", "$(touch x).json"])
def test_what_is_only_odd_is_a_file_in_its_folder(hub: LoopbackHub, home: Path, source: str, path: str) -> None:
    hub.add(ID, {**FILES, path: b"{}"})
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == {**FILES, path: b"{}"}


@pytest.mark.parametrize(
    "name",
    [
        ";touch x",
        "$(touch x)",
        "a/b\n",
        "-rf/x",
        "'a'/b",
        '"a/b"',
        "千问/模型",
        "../x",
        "a/..",
        "a",
        "a/b/c",
        "a/.b",
        "",
    ],
)
def test_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="not the name of a repository"):
        names.repository(name)


def test_a_page_address_is_understood() -> None:
    assert names.repository("https://www.modelscope.cn/models/Qwen/Qwen2.5-7B/summary") == "Qwen/Qwen2.5-7B"
    assert names.repository("https://huggingface.co/Qwen/Qwen2.5-7B/tree/main") == "Qwen/Qwen2.5-7B"


# Locks (rows 22 and 23).


def test_a_lock_left_by_a_dead_process_is_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".tiny.lock").write_text("")
    with store.locked(tmp_path / "tiny", wait_s=0):
        pass
    assert not (tmp_path / ".tiny.lock").exists()


def test_a_held_lock_is_waited_for_within_a_bound(tmp_path: Path) -> None:
    with (tmp_path / ".tiny.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        told: list[bool] = []
        with (
            pytest.raises(BusyError),
            store.locked(tmp_path / "tiny", wait_s=0.1, waiting=lambda: told.append(True), pause_s=0.01),
        ):
            pass
        assert told == [True]


def test_only_one_holds_the_lock_at_a_time(tmp_path: Path) -> None:
    holders: list[int] = []

    def work() -> None:
        for _ in range(20):
            with store.locked(tmp_path / "tiny", pause_s=0.001):
                holders.append(1)
                assert len(holders) == 1
                holders.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not holders


def test_a_replacement_cut_off_between_its_renames_is_undone(hub: LoopbackHub, home: Path) -> None:
    path = fetching.fetch(ask(hub, home)).path
    path.rename(store.replaced(path))
    sent = hub.sent
    assert fetching.fetch(ask(hub, home)).path == path
    assert hub.sent == sent


# What is torn (rows 12 and 13).


def test_truncated_safetensors_and_missing_shards_are_named(tmp_path: Path) -> None:
    (tmp_path / "model-00001.safetensors").write_bytes(WEIGHTS[:-1])
    (tmp_path / "model-00002.safetensors").write_bytes(WEIGHTS[:5])
    index = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00003.safetensors"}}
    files.write_json(tmp_path / "model.safetensors.index.json", index)
    found = {problem.file: problem.what for problem in torn(tmp_path)}
    assert set(found) == {f"model-0000{n}.safetensors" for n in (1, 2, 3)}
    assert found["model-00003.safetensors"] == "missing shard"


def test_a_whole_model_has_no_problems(hub: LoopbackHub, home: Path) -> None:
    path = fetching.fetch(ask(hub, home)).path
    (copy,) = store.copies(Home(home))
    assert not list(torn(path))
    assert not list(changed(copy))
    (path / "config.json").unlink()
    assert [problem.file for problem in changed(copy)] == ["config.json"]
    assert local_copy(Home(home), "model", ID) is None
