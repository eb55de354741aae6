"""The hub library against the real SDKs of both hubs, with everything that goes wrong on the way."""

import hashlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback_hub import Fault, LoopbackHub
from safetensors.numpy import save

from toolbox.config import Home, Settings
from toolbox.errors import CorruptError, DoesNotFitError, HubError, InputError, NotFoundError
from toolbox.hub import fetching, local_copy, routing, sources, store
from toolbox.hub.huggingface import HuggingFace
from toolbox.hub.modelscope import ModelScope
from toolbox.hub.partial import Partial
from toolbox.hub.transfer import TRIES, Manner, Transfer

ID = "Qwen/tiny"
WEIGHTS = save({"weight": np.random.default_rng(1).random((512, 512), dtype=np.float32)})
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"model_type": "qwen3"}', "说明/自述.md": "你好".encode()}
SOURCES = ("modelscope", "huggingface")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with LoopbackHub() as hub:
        hub.add(ID, FILES)
        yield hub


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ask(hub: LoopbackHub, home: Path, **more: Any) -> fetching.Request:
    settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=hub.url)
    return fetching.Request(**{"id": ID, "home": Home(home), "settings": settings, "pause_s": 0.0, **more})


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and file.name != store.MANIFEST
    }


def test_every_file_arrives_and_is_hashed(hub: LoopbackHub, home: Path, source: str) -> None:
    told: list[int] = []
    fetched = fetching.fetch(ask(hub, home, source=source, progress=lambda title, total: told.append))
    assert content(fetched.path) == FILES
    assert (fetched.source, fetched.files, fetched.verified) == (source, 3, True)
    assert fetched.bytes == sum(map(len, FILES.values())) == sum(told)
    assert local_copy(Home(home), "model", ID) == fetched.path == home / "models" / "Qwen" / "tiny"
    assert os.listdir(home / "models" / "Qwen") == ["tiny"]


def test_a_data_set_has_its_own_place(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.add("me/rows", {"train.jsonl": b"{}\n"}, kind="dataset")
    fetched = fetching.fetch(ask(hub, home, source=source, id="me/rows", kind="dataset"))
    assert fetched.path == home / "datasets" / "me" / "rows"
    assert local_copy(Home(home), "model", "me/rows") is None


def test_what_is_here_is_not_fetched_again(hub: LoopbackHub, home: Path, source: str) -> None:
    fetching.fetch(ask(hub, home, source=source))
    sent = hub.sent
    assert fetching.fetch(ask(hub, home, source=source)).verified
    assert hub.sent == sent


def test_a_newer_revision_replaces_only_what_changed(hub: LoopbackHub, home: Path) -> None:
    path = fetching.fetch(ask(hub, home, source="modelscope")).path
    sent = hub.sent
    hub.add(ID, {"model.safetensors": WEIGHTS, "config.json": b'{"model_type": "qwen4"}'})
    fetching.fetch(ask(hub, home, source="modelscope"))
    assert content(path) == hub.repositories["model", ID]
    assert hub.sent - sent == len(b'{"model_type": "qwen4"}')


def test_include_takes_only_what_matches_and_adds_to_what_is_here(hub: LoopbackHub, home: Path) -> None:
    path = fetching.fetch(ask(hub, home, include=["*.json"])).path
    assert set(content(path)) == {"config.json"}
    fetching.fetch(ask(hub, home, include=["*.md"]))
    assert set(content(path)) == {"config.json", "说明/自述.md"}
    with pytest.raises(NotFoundError):
        fetching.fetch(ask(hub, home, include=["*.gguf"]))


def test_pickled_weights_stay_away_where_safetensors_are(hub: LoopbackHub, home: Path) -> None:
    hub.add(ID, {**FILES, "pytorch_model.bin": b"x", "modeling_tiny.py": b"open('canary', 'w')"})
    said: list[str] = []
    path = fetching.fetch(ask(hub, home, say=said.append)).path
    assert not (path / "pytorch_model.bin").exists()
    assert any("pytorch_model.bin" in text for text in said)
    assert not Path("canary").exists()


PICKLED = [
    "pytorch_model.bin", "adapter_model.bin", "optimizer.pt", "rng_state.pth", "scheduler.ckpt", "training_args.bin",
    "tokenizer.pkl", "vectors.npz", "value_head.pickle", "deep/er/model.joblib",
]  # fmt: skip


def test_pickles_are_left_out_wherever_they_lie_and_refused_where_they_are_all_there_is(
    hub: LoopbackHub, home: Path, source: str
) -> None:
    hostile = dict.fromkeys(PICKLED, b"cos\nsystem\n(S'touch canary'\ntR.")
    hub.add("safe/model", {**FILES, **hostile})
    assert content(fetching.fetch(ask(hub, home, source=source, id="safe/model")).path) == FILES
    hub.add("old/model", {"config.json": b"{}", **hostile})
    sent = hub.sent
    with pytest.raises(InputError, match="pickles only"):
        fetching.fetch(ask(hub, home, source=source, id="old/model"))
    assert hub.sent == sent
    hub.add("old/rows", {"rows.jsonl": b"{}\n", **hostile}, kind="dataset")
    assert set(content(fetching.fetch(ask(hub, home, source=source, id="old/rows", kind="dataset")).path)) == {
        "rows.jsonl"
    }
    asked = fetching.fetch(ask(hub, home, source=source, id="old/model", include=["vectors.npz"]))
    assert set(content(asked.path)) == {"vectors.npz"}


# Faults on the way (rows 1 to 5 of what must not break).


def test_a_flipped_bit_is_fetched_again(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["model.safetensors"] = [Fault(corrupt=True)]
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES
    assert len(hub.transfers("model.safetensors")) == 2


def test_a_body_that_never_matches_is_refused_after_a_bound(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.listed["model.safetensors"] = {"Sha256": hashlib.sha256(b"another").hexdigest()}
    with pytest.raises(CorruptError, match=r"model\.safetensors"):
        fetching.fetch(ask(hub, home, source=source))
    assert len(hub.transfers("model.safetensors")) == routing.ROUNDS
    assert local_copy(Home(home), "model", ID) is None
    assert not list(home.rglob("model.safetensors*"))


def test_a_small_file_is_hashed_too(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["config.json"] = [Fault(corrupt=True)]
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES


def test_a_listing_without_hashes_is_said(hub: LoopbackHub, home: Path) -> None:
    hub.listed["model.safetensors"] = {"Sha256": ""}
    fetched = fetching.fetch(ask(hub, home, source="modelscope"))
    assert (fetched.verified, fetched.unverified) == (False, ("model.safetensors",))


def test_a_cut_connection_is_resumed_by_range(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["model.safetensors"] = [Fault(drop_at=400_000)]
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES
    first, second = hub.transfers("model.safetensors")
    assert not first.range
    assert second.range.startswith("bytes=")
    assert second.sent < len(WEIGHTS)


def test_a_server_that_ignores_ranges_starts_the_file_again(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["model.safetensors"] = [Fault(drop_at=400_000), Fault(ignore_range=True)]
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES


def test_an_expired_address_is_asked_for_again(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["model.safetensors"] = [Fault(drop_at=400_000), Fault(status=403, after_offset=1)]
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES


def transfer(hub: LoopbackHub, home: Path, source: str, **manner: Any) -> None:
    """The weights alone, without listing and publishing."""
    at: Any = HuggingFace(hub.url, 0.3) if source == "huggingface" else ModelScope(hub.url, {}, Home(home), 0.3)
    entry = sources.Entry("model.safetensors", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    with at.reading(sources.Repo("model", ID, "master")) as read:
        Transfer(read, [Partial(home / "here", entry)], Manner(pause_s=0, **manner), lambda size: None).run()


def test_a_stalled_connection_is_taken_up_again(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["model.safetensors"] = [Fault(stall_s=2.0)]
    transfer(hub, home, source)
    assert content(home / "here") == {"model.safetensors": WEIGHTS}


def test_a_server_that_only_fails_is_given_up(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.faults["model.safetensors"] = [Fault(status=503) for _ in range(20)]
    with pytest.raises(sources.BrokenOffError) as caught:
        transfer(hub, home, source)
    assert sources.reason(caught.value) == "HTTP 503"
    assert len(hub.faults["model.safetensors"]) == 20 - TRIES


def test_storage_on_another_host_gets_no_token(
    hub: LoopbackHub, home: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.storage = True
    monkeypatch.setenv("HF_TOKEN", "hf_CanaryOfHuggingFace")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-canary-of-modelscope")
    hub.faults["model.safetensors"] = [Fault(drop_at=400_000), Fault(status=403)]
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES
    assert any("anary" in seen.authorization for seen in hub.seen if seen.path.startswith("/api"))
    assert not any(seen.authorization for seen in hub.transfers("model.safetensors"))


# Where to fetch from (row 6).


def test_where_one_hub_is_down_the_other_is_used(hub: LoopbackHub, home: Path, closed_port: str) -> None:
    settings = Settings(modelscope_endpoint=closed_port, huggingface_endpoint=hub.url)
    assert fetching.fetch(ask(hub, home, settings=settings)).source == "huggingface"
    settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=closed_port)
    assert fetching.fetch(ask(hub, home / "other", settings=settings)).source == "modelscope"


def test_the_hub_that_brings_more_is_asked_first(hub: LoopbackHub, home: Path) -> None:
    """Tried out by fetching: a mirror that answers at once and then sends slowly comes last."""
    big = {"model.safetensors": WEIGHTS * 9}
    with LoopbackHub(rate=2e5) as slow:
        for one in (hub, slow):
            one.add("Qwen/big", big)
        said: list[str] = []
        settings = Settings(modelscope_endpoint=slow.url, huggingface_endpoint=hub.url)
        fetched = fetching.fetch(ask(hub, home, id="Qwen/big", settings=settings, say=said.append))
        assert fetched.source == "huggingface"
        assert slow.sent < len(big["model.safetensors"]) / 2
    assert "Hugging Face; measured" in said[0]


def test_a_hub_that_says_nothing_is_not_waited_for(hub: LoopbackHub, home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        nobody = f"http://127.0.0.1:{silent.getsockname()[1]}"
        settings = Settings(modelscope_endpoint=nobody, huggingface_endpoint=hub.url)
        assert fetching.fetch(ask(hub, home, settings=settings)).source == "huggingface"


def test_a_link_planted_among_half_fetched_files_is_not_followed(hub: LoopbackHub, home: Path) -> None:
    part = home / "models" / "Qwen" / ".tiny.part"
    part.mkdir(parents=True)
    outside = home.parent / "outside"
    outside.write_bytes(b"mine")
    for name in ("config.json", "config.json.incomplete", "model.safetensors.incomplete"):
        (part / name).symlink_to(outside)
    assert content(fetching.fetch(ask(hub, home)).path) == FILES
    assert outside.read_bytes() == b"mine"


def test_where_all_are_down_the_verified_copy_is_used(hub: LoopbackHub, home: Path, closed_port: str) -> None:
    down = Settings(modelscope_endpoint=closed_port, huggingface_endpoint=closed_port)
    path = fetching.fetch(ask(hub, home)).path
    said: list[str] = []
    assert fetching.fetch(ask(hub, home, settings=down, source="modelscope", say=said.append)).path == path
    assert any("copy on this disk" in text for text in said)
    (path / "config.json").write_bytes(b"{}")
    with pytest.raises(HubError):
        fetching.fetch(ask(hub, home, settings=down, source="huggingface"))


def test_a_hub_without_the_repository_gives_way_to_the_other(hub: LoopbackHub, home: Path, source: str) -> None:
    with pytest.raises(NotFoundError, match="no/such"):
        fetching.fetch(ask(hub, home, id="no/such", source=source))
    with pytest.raises(NotFoundError):
        fetching.fetch(ask(hub, home, id="no/such"))


@pytest.fixture
def closed_port() -> str:
    with LoopbackHub() as hub:
        return hub.url


# Room on the disk (row 7).


def test_too_little_room_is_refused_before_the_first_byte(hub: LoopbackHub, home: Path, source: str) -> None:
    with pytest.raises(DoesNotFitError, match=r"1\.0 MiB.*1000 B"):
        fetching.fetch(ask(hub, home, source=source, free_bytes=lambda path: 1000))
    assert hub.sent == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 512 KiB and 40 inodes; skips where mounting is not permitted."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k,nr_inodes=40", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_small_disk_is_refused_before_the_first_byte(hub: LoopbackHub, small_disk: Path) -> None:
    with pytest.raises(DoesNotFitError, match=r"512\.0 KiB|5\d\d\.\d KiB"):
        fetching.fetch(ask(hub, small_disk))
    assert hub.sent == 0


def test_a_disk_that_fills_up_on_the_way_is_said_and_the_rest_is_resumed(
    hub: LoopbackHub, small_disk: Path, source: str
) -> None:
    with pytest.raises(DoesNotFitError, match="No space left"):
        fetching.fetch(ask(hub, small_disk, source=source, free_bytes=lambda path: 1 << 40))
    assert local_copy(Home(small_disk), "model", ID) is None
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    sent = hub.sent
    assert content(fetching.fetch(ask(hub, small_disk, source=source)).path) == FILES
    assert hub.sent - sent < len(WEIGHTS)


def test_a_disk_without_inodes_is_named_as_such(hub: LoopbackHub, small_disk: Path) -> None:
    hub.add(ID, {f"{number}.json": b"{}" for number in range(50)})
    with pytest.raises(DoesNotFitError, match="inodes"):
        fetching.fetch(ask(hub, small_disk))
