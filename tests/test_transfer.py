"""Files in many parts, from several hubs, mirrors and folders, past proxies and within a bound on their speed."""

# ruff: noqa: F811

import hashlib
import http.server
import random
import subprocess
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli
from loopback_hub import Fault, LoopbackHub
from test_hub import FILES, ID, WEIGHTS, ask, content, hub, small_disk  # noqa: F401

from toolbox import units
from toolbox.config import Settings
from toolbox.errors import DoesNotFitError, HubError, InputError, NotFoundError
from toolbox.hub import fetching, names, partial, routing, store
from toolbox.hub.partial import Partial
from toolbox.hub.sources import Entry
from toolbox.hub.transfer import Pace

PART = 1 << 16
TOTAL = sum(map(len, FILES.values()))


@pytest.fixture(autouse=True)
def _many_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The weights have 17 parts, and no cache of the person who runs the tests is looked into."""
    monkeypatch.setattr(partial, "SMALLEST_PART", PART)
    for name in ("HF_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.fixture(params=["modelscope", "huggingface"])
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Ranges of one file.


def test_a_large_file_comes_in_ranges_each_of_them_once(hub: LoopbackHub, home: Path, source: str) -> None:
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES
    ranges = {seen.range for seen in hub.transfers("model.safetensors")}
    assert len(ranges) == -(-len(WEIGHTS) // PART)
    assert hub.sent == TOTAL


@pytest.mark.parametrize(
    ("faults", "at_most"),
    [
        ([Fault(drop_at=20_000), Fault(drop_at=1), Fault(drop_at=50_000, after_offset=PART * 9)], 1.1),
        ([Fault(drop_at=20_000, after_offset=PART * 3), *[Fault(status=403, after_offset=PART * 3)] * 9], 1.1),
        ([Fault(status=503, after_offset=PART * 5)] * 3, 1.0),
        ([Fault(ignore_range=True)] * 99, 99),
        ([Fault(ignore_range=True, after_offset=PART * 9)] * 99, 99),
        ([Fault(corrupt=True, after_offset=len(WEIGHTS) // 2)], 2.0),
    ],
    ids=["cut off", "address expired", "busy", "no ranges", "no ranges any more", "a bit flipped in one range"],
)
def test_what_befalls_one_range_costs_little(
    hub: LoopbackHub, home: Path, source: str, faults: list[Fault], at_most: float
) -> None:
    """All of the file again only where no ranges are to be had, or where nothing but its hash tells of it."""
    hub.storage = True
    hub.faults["model.safetensors"] = list(faults)
    assert content(fetching.fetch(ask(hub, home, source=source)).path) == FILES
    assert sum(seen.sent for seen in hub.transfers("model.safetensors")) <= at_most * len(WEIGHTS) + 8 * PART


def test_a_signed_address_is_used_until_it_expires(hub: LoopbackHub, home: Path, source: str) -> None:
    hub.storage = True
    fetching.fetch(ask(hub, home, source=source, connections=1))
    asked = [seen for seen in hub.seen if "resolve" in seen.path or "FilePath" in seen.path]
    assert len(asked) == len(FILES)


def test_a_disk_that_fills_up_keeps_the_parts_that_came(hub: LoopbackHub, small_disk: Path, source: str) -> None:
    with pytest.raises(DoesNotFitError, match="No space left"):
        fetching.fetch(ask(hub, small_disk, source=source, free_bytes=lambda path: 1 << 40))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    sent = hub.sent
    assert content(fetching.fetch(ask(hub, small_disk, source=source)).path) == FILES
    assert hub.sent - sent < len(WEIGHTS) * 0.8


def test_whatever_order_parts_come_in_and_whenever_it_is_cut_off_the_file_is_right(tmp_path: Path) -> None:
    dice = random.Random(3)
    entry = Entry("model.safetensors", len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
    fresh = 0
    for _attempt in range(40):
        here = Partial(tmp_path, entry)
        here.open()
        for part in dice.sample(list(here.missing()), k=min(3, len(list(here.missing())))):
            start, stop = here.span(part) or (0, 0)
            cut = dice.randint(start, stop)
            fresh += here.write(start, WEIGHTS[start:cut])
            here.hash_behind()
    for part in here.missing():
        start, stop = here.span(part) or (0, 0)
        fresh += here.write(start, WEIGHTS[start:stop])
    record = here.finish()
    assert record is not None
    assert record.sha256 == entry.sha256
    assert fresh == len(WEIGHTS)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_what_came_of_another_file_or_a_torn_table_is_not_gone_on_with(tmp_path: Path) -> None:
    entry = Entry("model.safetensors", len(WEIGHTS), "a" * 64)
    first = Partial(tmp_path, entry)
    first.open()
    first.write(0, WEIGHTS[:PART])
    assert Partial(tmp_path, entry).look() == PART
    assert Partial(tmp_path, Entry("model.safetensors", len(WEIGHTS), "b" * 64)).look() == 0
    assert Partial(tmp_path, Entry("model.safetensors", len(WEIGHTS))).look() == 0
    first.table.write_bytes(first.table.read_bytes()[:-3])
    assert Partial(tmp_path, entry).look() == 0


# Several hubs.


def test_where_one_hub_dies_in_the_middle_the_other_goes_on_with_what_is_there(hub: LoopbackHub, home: Path) -> None:
    hub.faults["model.safetensors"] = [Fault(status=500, after_offset=PART * 8)] * 99
    with LoopbackHub() as other:
        other.add(ID, FILES)
        said: list[str] = []
        settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=other.url)
        fetched = fetching.fetch(ask(hub, home, settings=settings, say=said.append))
        assert (content(fetched.path), fetched.source) == (FILES, "huggingface")
        assert hub.sent + other.sent <= TOTAL + 8 * PART
        assert other.sent < len(WEIGHTS)
    assert any("HTTP 500. Trying Hugging Face" in text for text in said)


def test_hubs_that_both_keep_failing_are_asked_while_they_bring_something(hub: LoopbackHub, home: Path) -> None:
    cut = [fault for _ in range(6) for fault in (Fault(drop_at=PART // 2), Fault(status=500), Fault(status=500))]
    with LoopbackHub() as other:
        other.add(ID, FILES)
        for one in (hub, other):
            one.faults["model.safetensors"] = list(cut)
        settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=other.url)
        assert content(fetching.fetch(ask(hub, home, settings=settings, connections=1)).path) == FILES
        assert hub.sent + other.sent <= TOTAL + 8 * PART


def test_where_all_stay_away_after_a_beginning_there_is_a_wait_and_then_an_end(hub: LoopbackHub, home: Path) -> None:
    hub.faults["model.safetensors"] = [Fault(status=500, after_offset=PART * 8)] * 999
    said: list[str] = []
    with pytest.raises(HubError, match="HTTP 500"):
        fetching.fetch(ask(hub, home, say=said.append, pause_s=0.01))
    assert sum("Trying again in 0 s" in text for text in said) >= 2
    del hub.faults["model.safetensors"]
    assert content(fetching.fetch(ask(hub, home, say=said.append)).path) == FILES
    assert "are here already" in said[-1]
    assert hub.sent <= TOTAL + 8 * PART


def test_a_hub_that_wants_a_token_gives_way_to_one_that_does_not(hub: LoopbackHub, home: Path) -> None:
    hub.denied = True
    with LoopbackHub() as other:
        other.add(ID, FILES)
        settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=other.url)
        assert fetching.fetch(ask(hub, home, settings=settings)).source == "huggingface"


# Mirrors and folders.


@pytest.mark.parametrize("kind", ["hf", "ms"])
def test_a_mirror_is_named_by_its_address_and_gets_no_token(
    hub: LoopbackHub, home: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_Canary")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-canary")
    address = names.address(f"{kind}::{hub.url}/{ID}")
    fetched = fetching.fetch(ask(hub, home, id=address.id, source=address.source))
    assert (content(fetched.path), fetched.source, fetched.verified) == (FILES, f"{kind}::{hub.url}", True)
    assert not any("anary" in seen.authorization for seen in hub.seen)


def test_another_home_is_a_mirror_with_hashes_and_an_unhashed_folder_says_so(
    hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    fetching.fetch(ask(hub, tmp_path / "other"))
    sent = hub.sent
    mirrored = fetching.fetch(ask(hub, home, source=str(tmp_path / "other")))
    assert (content(mirrored.path), mirrored.verified, hub.sent) == (FILES, True, sent)
    (tmp_path / "other" / "models" / ID / store.MANIFEST).unlink()
    again = fetching.fetch(ask(hub, home / "again", source=f"file://{tmp_path / 'other'}"))
    assert (content(again.path), again.verified) == (FILES, False)
    with pytest.raises(NotFoundError):
        fetching.fetch(ask(hub, home / "again", source=str(tmp_path / "other"), id="no/such"))


def test_auto_takes_a_mirror_of_the_settings_where_the_hubs_are_down(
    hub: LoopbackHub, home: Path, tmp_path: Path
) -> None:
    fetching.fetch(ask(hub, tmp_path / "other"))
    closed = "http://127.0.0.1:9"
    settings = Settings(
        modelscope_endpoint=closed, huggingface_endpoint=closed, mirrors=f"hf::{closed}, {tmp_path / 'other'}"
    )
    assert fetching.fetch(ask(hub, home, settings=settings)).source == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("place", "right"), [("Qwen/tiny", True), ("Qwen/tiny", False), ("Qwen--tiny/snapshots/master", True)]
)
def test_what_other_programs_fetched_is_taken_where_its_hash_is_right(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, right: bool
) -> None:
    cache = tmp_path / "modelscope" / "models" / place
    cache.mkdir(parents=True)
    (cache / "model.safetensors").write_bytes(WEIGHTS if right else WEIGHTS[:-1] + b"?")
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    assert content(fetching.fetch(ask(hub, home)).path) == FILES
    assert hub.sent == (TOTAL - len(WEIGHTS) if right else TOTAL)


def test_hugging_faces_cache_is_read_by_the_names_of_its_blobs_also_offline(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "hf" / "hub" / "models--Qwen--tiny"
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    (repository / "blobs").mkdir()
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    (repository / "blobs" / digest).write_bytes(WEIGHTS)
    (repository / "snapshots" / "c0ffee" / "model.safetensors").symlink_to(f"../../blobs/{digest}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    closed = Settings(modelscope_endpoint="http://127.0.0.1:9", huggingface_endpoint="http://127.0.0.1:9")
    fetched = fetching.fetch(ask(hub, home, settings=closed))
    assert (content(fetched.path), fetched.verified) == ({"model.safetensors": WEIGHTS}, True)


def test_a_file_that_is_here_under_another_name_is_not_fetched(hub: LoopbackHub, home: Path) -> None:
    fetching.fetch(ask(hub, home, source="modelscope"))
    sent = hub.sent
    hub.add(ID, {"renamed.safetensors": WEIGHTS, "config.json": FILES["config.json"]})
    path = fetching.fetch(ask(hub, home, source="modelscope")).path
    assert content(path) == {"renamed.safetensors": WEIGHTS, "config.json": FILES["config.json"]}
    assert hub.sent == sent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3-8B", names.Address("Qwen/Qwen3-8B")),
        ("ms::Qwen/Qwen3-8B", names.Address("Qwen/Qwen3-8B", "modelscope")),
        ("hf::Qwen/Qwen3-8B", names.Address("Qwen/Qwen3-8B", "huggingface")),
        ("https://www.modelscope.cn/models/a/b/summary", names.Address("a/b", "modelscope", "model")),
        ("https://huggingface.co/datasets/a/b", names.Address("a/b", "huggingface", "dataset")),
        ("https://huggingface.co/a/b/tree/v1.0?x=1", names.Address("a/b", "huggingface", "", "v1.0")),
        ("https://hf-mirror.com/a/b", names.Address("a/b", "hf::https://hf-mirror.com")),
        ("ms::http://10.0.0.5:8000/models/a/b", names.Address("a/b", "ms::http://10.0.0.5:8000", "model")),
        ("https://evilhuggingface.co/a/b", names.Address("a/b", "hf::https://evilhuggingface.co")),
    ],
)
def test_an_address_says_hub_kind_and_revision(text: str, expected: names.Address) -> None:
    assert names.address(text) == expected


@pytest.mark.parametrize("text", ["xx::a/b", "hf::", "::a/b", "hf::a", "ftp://x/a/b", "hf::https://user@host/a/b"])
def test_what_names_no_repository_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="not the name of a repository"):
        names.address(text)


def test_what_is_no_place_to_fetch_from_is_refused(hub: LoopbackHub, home: Path) -> None:
    for source in ("nowhere", "xx::http://127.0.0.1", "/no/such/folder"):
        with pytest.raises(InputError, match="no place to fetch from"):
            fetching.fetch(ask(hub, home, source=source))


# Speed and proxies.


def test_a_limit_holds_over_all_connections() -> None:
    now = 0.0
    pace = Pace(1000.0, clock=lambda: now)
    assert [round(pace.owed_s(500), 3) for _connection in range(4)] == [0.5, 1.0, 1.5, 2.0]
    now = 10.0
    assert pace.owed_s(100) == pytest.approx(0.1)
    assert Pace().owed_s(1 << 40) == 0


def test_every_byte_is_within_the_limit_of_the_settings(
    hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes that hubs are tried out on too, whichever verb fetches."""
    counted: dict[float, int] = {}

    class Noting(Pace):
        def owed_s(self, count: int) -> float:
            counted[self._rate] = counted.get(self._rate, 0) + count
            return 0.0

    monkeypatch.setattr(fetching, "Pace", Noting)
    monkeypatch.setattr(routing, "WORTHWHILE", 1)
    settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=hub.url, limit_rate="5M")
    fetching.fetch(ask(hub, home, settings=settings))
    assert counted == {5 << 20: hub.sent}
    assert hub.sent > TOTAL


def test_a_limit_is_written_as_curl_and_wget_write_it() -> None:
    rates = [units.rate(text) for text in ("", "500", "500K", "10M", "1.5g", "2MiB/s")]
    assert rates == [0, 500, 500 << 10, 10 << 20, 1.5 * (1 << 30), 2 << 20]
    for text in ("fast", "10 X", "-1M"):
        with pytest.raises(InputError, match="bytes a second"):
            units.rate(text)


class Proxy(http.server.BaseHTTPRequestHandler):
    """An HTTP proxy that notes what went through it."""

    asked: list[str]

    def log_message(self, *words: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        headers = {name: value for name, value in self.headers.items() if name not in ("Host", "Connection")}
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        asked = urllib.request.Request(self.path, headers=headers, method=self.command)
        with direct.open(asked) as answer:
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                if name not in ("Server", "Date"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.read())


@pytest.fixture
def proxy() -> Iterator[Any]:
    handler = type("Noting", (Proxy,), {"asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_proxy_is_used_for_hugging_face_and_never_for_modelscope(
    hub: LoopbackHub, toolbox_cli: Cli, proxy: Any
) -> None:
    """Also with the lines that proxy programs have people paste: three variables, one of them SOCKS."""
    hub.storage = True
    hub.add("Qwen/other", FILES)
    url = f"http://127.0.0.1:{proxy.server_port}"
    environ = {"http_proxy": url, "HTTPS_PROXY": url, "ALL_PROXY": "socks5://127.0.0.1:9", "HF_HUB_OFFLINE": "0"}
    environ |= {
        "MODELSCOPE_ENDPOINT": hub.url,
        "HF_ENDPOINT": hub.url.replace("127.0.0.1", "localhost"),
        "no_proxy": "example.com",
    }
    toolbox_cli("download", f"ms::{ID}", "hf::Qwen/other", env=environ).done()
    asked = [urllib.parse.unquote(path) for path in proxy.RequestHandlerClass.asked]
    assert all(any(name in path for path in asked) for name in FILES)
    assert not [path for path in asked if ID in path]
    assert len(hub.transfers("model.safetensors")) == 2


def test_the_order_of_hubs_follows_what_was_measured() -> None:
    hubs: list[Any] = ["modelscope", "huggingface", "mirror"]
    listing: Any = object()

    def order(*seconds: float) -> list[Any]:
        return [answer.hub for answer in routing.in_order(
            [routing.Answer(hub, listing, estimate_s=s) for hub, s in zip(hubs, seconds, strict=True)], hubs
        )]  # fmt: skip

    assert order(10, 10, 10) == ["modelscope", "huggingface", "mirror"]
    assert order(11, 10, 5) == ["mirror", "huggingface", "modelscope"]
    assert order(100, 10, 90) == ["huggingface", "mirror", "modelscope"]
