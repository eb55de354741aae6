"""`download` and `cache` as people call them, and killed as machines kill them."""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from loopback_hub import Fault, LoopbackHub
from safetensors.numpy import save

from toolbox.config import Home
from toolbox.hub import local_copy, store

ID = "Qwen/tiny"
WEIGHTS = save({"weight": np.random.default_rng(1).random((1024, 1536), dtype=np.float32)})
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"model_type": "qwen3"}', "README.md": b"# tiny\n"}
SECRETS = {"HF_TOKEN": "hf_CanaryOfHuggingFace", "MODELSCOPE_API_TOKEN": "ms-canary-of-modelscope"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """Both hubs on loopback; children find them through the environment."""
    with LoopbackHub() as hub:
        hub.add(ID, FILES)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        yield hub


@pytest.fixture
def environ(hub: LoopbackHub, toolbox_environ: dict[str, str]) -> dict[str, str]:
    """For processes that a test starts itself; after `hub`, so that they find it."""
    return {**toolbox_environ, **os.environ, "PYTHONPATH": toolbox_environ["PYTHONPATH"]}


def start(environ: dict[str, str], *words: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "toolbox", "download", ID, *words]
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_download_says_what_it_did(hub: LoopbackHub, toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli("download", ID, "--json", env=SECRETS).done().json
    assert answer["path"] == str(home / "models" / "Qwen" / "tiny")
    assert (answer["files"], answer["bytes"], answer["verified"]) == (3, sum(map(len, FILES.values())), True)


def test_a_dry_run_shows_the_files_and_fetches_none(hub: LoopbackHub, toolbox_cli: Cli, home: Path) -> None:
    answer = toolbox_cli("download", ID, "--dry-run", "--json").done()
    assert {entry["path"] for entry in answer.json["listing"]} == set(FILES)
    assert "model.safetensors" in answer.err
    assert hub.sent == 0
    assert local_copy(Home(home), "model", ID) is None


def test_a_known_model_is_asked_for_by_the_id_that_each_hub_has(hub: LoopbackHub, toolbox_cli: Cli, home: Path) -> None:
    hub.add("LLM-Research/Meta-Llama-3-8B-Instruct", FILES)
    name = "meta-llama/Meta-Llama-3-8B-Instruct"
    answer = toolbox_cli("download", name, "--source", "modelscope", "--json").done().json
    assert answer["path"] == str(home / "models" / name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Qwen/Qwen2.5-72B-Instruct", "needs"),
        ("OpenGVLab/InternVL3-8B", "program code of its own"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "quantised already"),
    ],
)
def test_what_cannot_be_trained_is_not_fetched_to_learn_that(
    hub: LoopbackHub, toolbox_cli: Cli, name: str, why: str
) -> None:
    answer = toolbox_cli("finetune", "--model", name, "--dataset", "demo-persona", "--yes", "--lang", "en")
    assert answer.status == 2
    assert why in answer.err
    assert hub.seen == []


@pytest.mark.parametrize(("name", "kind"), [("Qwen/Qwen2.5-7B-Instuct", "model"), ("argila/kto-mix-15k", "dataset")])
def test_a_name_that_is_nearly_a_known_one_is_warned_of_before_the_first_byte(
    hub: LoopbackHub, toolbox_cli: Cli, name: str, kind: str
) -> None:
    hub.add(name, {**FILES, "rows.jsonl": b"{}\n"}, kind=kind)
    answer = toolbox_cli("download", name, "--type", kind, "--dry-run").done()
    assert "Careful" in answer.out
    assert answer.out.index("Careful") < answer.out.index("rows.jsonl")
    assert hub.sent == 0


def test_several_at_once(hub: LoopbackHub, toolbox_cli: Cli) -> None:
    hub.add("Qwen/other", {"config.json": b"{}"})
    answer = toolbox_cli("download", ID, "Qwen/other", "--json").done().json
    assert [one["id"] for one in answer["downloads"]] == [ID, "Qwen/other"]
    assert answer["files"] == 1


def test_a_folder_is_checked_where_it_lies(toolbox_cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "我的 模型"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    assert toolbox_cli("download", str(folder), "--json").done().json["path"] == str(folder)
    (folder / "model.safetensors").write_bytes(WEIGHTS[:-10])
    answer = toolbox_cli("download", str(folder))
    assert answer.status == 1
    assert "model.safetensors" in answer.err
    assert toolbox_cli("download", str(tmp_path / "none")).status == 2


def test_an_unknown_model_is_refused_and_a_hub_that_is_down_fails(hub: LoopbackHub, toolbox_cli: Cli) -> None:
    unknown = toolbox_cli("download", "Qwen/nope", "--json")
    assert (unknown.status, unknown.json["error"]["kind"]) == (2, "not_found")
    assert unknown.json["error"]["remedy"]
    nowhere = "http://127.0.0.1:9"
    down = toolbox_cli("download", ID, "--json", env={"MODELSCOPE_ENDPOINT": nowhere, "HF_ENDPOINT": nowhere})
    assert (down.status, down.json["error"]["kind"]) == (1, "hub")


@pytest.mark.parametrize("name", [";touch x", "$(touch x)", "a/b\ntouch x", "-x", "'a'/b", '"', "千问/模型"])
def test_an_odd_name_gets_one_sentence(toolbox_cli: Cli, tmp_path: Path, name: str) -> None:
    answer = toolbox_cli("download", name)
    assert answer.status == 2
    assert len(answer.err.strip().splitlines()) <= 2
    assert "Traceback" not in answer.err
    assert not list(tmp_path.rglob("x"))


@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_tokens_reach_the_hub_and_nothing_else(hub: LoopbackHub, toolbox_cli: Cli, home: Path, source: str) -> None:
    hub.faults["config.json"] = [Fault(status=500)]
    answers = [
        toolbox_cli("download", ID, "--source", source, "--json", env=SECRETS).done(),
        toolbox_cli("download", "Qwen/nope", "--source", source, "--json", env=SECRETS),
    ]
    token = SECRETS["HF_TOKEN" if source == "huggingface" else "MODELSCOPE_API_TOKEN"]
    assert any(token in seen.authorization for seen in hub.seen)
    for secret in SECRETS.values():
        assert not any(secret in answer.out + answer.err for answer in answers)
        for file in home.rglob("*"):
            assert not file.is_file() or secret.encode() not in file.read_bytes()


def test_two_processes_make_one_copy(hub: LoopbackHub, environ: dict[str, str], home: Path) -> None:
    hub.rate = 8e6
    children = [start(environ), start(environ)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert sum(seen.sent for seen in hub.transfers("model.safetensors")) == len(WEIGHTS)
    assert_whole(home)


@pytest.mark.parametrize("source", ["modelscope", pytest.param("huggingface", marks=pytest.mark.slow)])
def test_three_kills_and_it_resumes(hub: LoopbackHub, environ: dict[str, str], home: Path, source: str) -> None:
    hub.rate = 6e6
    for eighths in (2, 4, 6):
        kill_after(start(environ, "--source", source), hub, int(len(WEIGHTS) * eighths / 8))
        assert local_copy(Home(home), "model", ID) is None
        assert not (home / "models" / "Qwen" / "tiny").exists()
    assert start(environ, "--source", source).wait(60) == 0
    assert_whole(home)
    resumed = [seen for seen in hub.transfers("model.safetensors") if seen.range]
    assert resumed, "no transfer was resumed by Range"


@pytest.mark.parametrize("source", ["modelscope", pytest.param("huggingface", marks=pytest.mark.slow)])
def test_ctrl_c_ends_it_and_it_resumes(hub: LoopbackHub, environ: dict[str, str], home: Path, source: str) -> None:
    hub.rate = 3e6
    command = [sys.executable, "-P", "-m", "toolbox", "download", ID, "--source", source]
    child = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while hub.sent < len(WEIGHTS) / 2:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "Traceback" not in said
    hub.rate = 0
    assert start(environ, "--source", source).wait(60) == 0
    assert_whole(home)
    assert any(seen.range for seen in hub.transfers("model.safetensors"))


def test_modelscope_is_reached_past_a_proxy(hub: LoopbackHub, toolbox_cli: Cli, home: Path) -> None:
    proxy = "http://127.0.0.1:9"
    toolbox_cli("download", ID, "--source", "modelscope", env={"http_proxy": proxy, "HTTP_PROXY": proxy}).done()
    assert_whole(home)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", ["modelscope", "huggingface"])
def test_fifty_kills(hub: LoopbackHub, environ: dict[str, str], home: Path, source: str) -> None:
    """25 at random offsets of the body, 25 at random times, so that listing, hashing and publishing are hit as well."""
    dice = random.Random(57)
    hub.rate = 12e6
    begun = time.monotonic()
    assert start(environ, "--source", source).wait(60) == 0
    whole_s = time.monotonic() - begun
    kills = completed = 0
    while kills < 50:
        if local_copy(Home(home), "model", ID):
            assert_whole(home)
            completed += 1
            shutil.rmtree(home / "models")
        child = start(environ, "--source", source)
        if kills % 2:
            killed = kill_after(child, hub, hub.sent + dice.randrange(len(WEIGHTS)))
        else:
            killed = kill_later(child, dice.uniform(0.1, whole_s))
        kills += killed
        assert_nothing_torn(home)
    assert start(environ, "--source", source).wait(60) == 0
    assert_whole(home)
    resumed = sum(bool(seen.range) for seen in hub.transfers("model.safetensors"))
    print(f"\n{source}: {kills} kills, {completed} complete copies in between, {resumed} transfers resumed by Range")


def kill_after(child: subprocess.Popen[bytes], hub: LoopbackHub, sent: int) -> bool:
    """`kill -9` once the hub has sent that many bytes; False where the download ended first."""
    while child.poll() is None and hub.sent < sent:
        time.sleep(0.002)
    return kill_later(child, 0)


def kill_later(child: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
    return child.wait(60) == -signal.SIGKILL


def assert_nothing_torn(home: Path) -> None:
    """What stands under its own name is whole, by hash, whenever it is looked at."""
    if (home / "models" / "Qwen" / "tiny").exists():
        assert_whole(home)


def assert_whole(home: Path) -> None:
    path = home / "models" / "Qwen" / "tiny"
    assert local_copy(Home(home), "model", ID) == path
    found = {file.name: file for file in path.iterdir()}
    assert set(found) == {*FILES, store.MANIFEST}
    for name, content in FILES.items():
        assert hashlib.sha256(found[name].read_bytes()).digest() == hashlib.sha256(content).digest()
    assert set(os.listdir(path.parent)) <= {"tiny", ".tiny.lock"}


# The cache.


def test_the_cache_is_listed_verified_mended_and_cleaned(hub: LoopbackHub, toolbox_cli: Cli, home: Path) -> None:
    path = Path(toolbox_cli("download", ID, "--json").done().json["path"])
    (listed,) = toolbox_cli("cache", "list", "--kind", "model", "--json").done().json["items"]
    assert (listed["id"], listed["kind"], listed["bytes"]) == (ID, "model", sum(map(len, FILES.values())))
    toolbox_cli("cache", "verify", ID).done()

    rot(path / "model.safetensors")
    answer = toolbox_cli("cache", "verify", "--json")
    assert (answer.status, answer.json["error"]["kind"]) == (1, "corrupt")
    assert "model.safetensors" in answer.json["error"]["message"]
    assert ID in answer.json["error"]["remedy"]
    assert local_copy(Home(home), "model", ID) is None

    toolbox_cli("download", ID).done()
    assert_whole(home)
    toolbox_cli("cache", "verify").done()

    rot(path / "model.safetensors")
    toolbox_cli("cache", "verify", "--yes").done()
    assert_whole(home)

    assert toolbox_cli("cache", "clean", "no/such").status == 2
    assert toolbox_cli("cache", "clean", ID, "--json").done().json["removed"] == []
    assert_whole(home)
    assert toolbox_cli("cache", "clean", ID, "--yes", "--json").done().json["removed"] == [str(path)]
    assert not path.exists()


def test_clean_removes_what_a_cut_off_download_left(hub: LoopbackHub, toolbox_cli: Cli, home: Path) -> None:
    part = home / "models" / "Qwen" / ".tiny.part"
    part.mkdir(parents=True)
    (part / "model.safetensors.incomplete").write_bytes(b"x" * 100)
    outside = home.parent / "outside"
    outside.mkdir()
    (home / "models" / "Qwen" / ".linked.part").symlink_to(outside)
    (listed,) = toolbox_cli("cache", "list", "--json").done().json["items"]
    assert (listed["kind"], listed["path"], listed["bytes"]) == ("partial", str(part), 100)
    toolbox_cli("cache", "clean", "--yes").done()
    assert not part.exists()
    assert outside.exists()


def rot(file: Path) -> None:
    """Flip a bit behind the file system's back: size and time stay."""
    stat = file.stat()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
