"""What hubs, proxies and networks answer that they should not; against the real SDKs, on loopback."""

# ruff: noqa: F811

import email.utils
import errno
import ssl
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback_hub import LoopbackHub
from test_hub import FILES, ID, WEIGHTS, ask, content, hub, source  # noqa: F401

from toolbox.config import Settings
from toolbox.errors import HubError, InputError
from toolbox.hub import fetching, huggingface, sources, store, web
from toolbox.hub.huggingface import HuggingFace

PAGE = "<html>Welcome to this hotel</html>"
DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def _no_caches_and_no_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_HOME", "MODELSCOPE_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(huggingface, "WAITS_S", (0.0, 0.0))


@pytest.mark.parametrize(
    "answer", [PAGE, DEEP, ["what"], {"error": "what"}, [{"type": "file", "path": "x", "size": None}]]
)
def test_what_is_no_listing_is_one_sentence(hub: LoopbackHub, home: Path, source: str, answer: Any) -> None:
    entries = {"Code": 200, "Data": {"Files": [{"Path": "x", "Size": -5, "Type": "blob"}]}}
    odd = entries if answer == {"error": "what"} else answer
    for kinds in (("info",), ("tree",)) if source == "huggingface" else (("listing",),):
        if (kinds, type(answer)) == (("info",), dict):
            continue  # to the SDK that is a repository without files
        hub.instead = {kind: [(200, odd if kind == "listing" else answer)] for kind in kinds}
        with pytest.raises(HubError, match="networks that want a login first answer like that"):
            fetching.fetch(ask(hub, home, source=source))
    assert hub.sent == 0


def test_a_web_page_for_a_file_is_told_and_never_kept(hub: LoopbackHub, home: Path) -> None:
    hub.instead = {"body": [(200, PAGE)] * 100}
    with pytest.raises(HubError, match="it sent a web page for a file"):
        fetching.fetch(ask(hub, home, source="modelscope"))
    hub.instead = {"body": [(200, PAGE)] * 2}
    assert content(fetching.fetch(ask(hub, home, source="modelscope")).path) == FILES


def test_who_may_list_and_not_read_learns_what_to_do(
    hub: LoopbackHub, home: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of models with terms (Llama, Gemma) everybody may see the list."""
    told = {"modelscope": "MODELSCOPE_API_TOKEN", "huggingface": "Accept its terms on"}[source]
    for status in web.DENIED:
        hub.instead = {"body": [(status, {})] * 20}
        with pytest.raises(InputError, match="does not let us read") as caught:
            fetching.fetch(ask(hub, home, source=source))
        assert told in caught.value.remedy
        assert len(hub.instead["body"]) >= 14, "there is no use in asking again and again"
    if source == "huggingface":
        hub.instead = {"info": [(401, {"error": "Invalid credentials in Authorization header"})] * 2}
        monkeypatch.setenv("HF_TOKEN", "hf_old")
        for where, word in ((source, "HF_TOKEN still holds"), (f"hf::{hub.url}", "gets no token")):
            with pytest.raises(InputError) as caught:
                fetching.fetch(ask(hub, home, source=where))
            assert word in caught.value.remedy


def test_a_busy_hub_is_asked_again(hub: LoopbackHub, home: Path) -> None:
    hub.instead = {"info": [(429, {}), (503, {})]}
    assert fetching.fetch(ask(hub, home, source="huggingface")).verified


def test_a_listing_in_pages_is_taken_whole_or_not_at_all(
    hub: LoopbackHub, home: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from modelscope_hub import _legacy_api

    many = {f"{number}.json": b"%d" % number for number in range(450)}
    hub.add("me/rows", many, kind="dataset")
    hub.add("me/flat", {**many, **FILES})
    listed = {"modelscope": routed("modelscope", hub, home), "huggingface": HuggingFace(hub.url)}[source]
    hub.page = 100
    assert len(listed.listing(sources.Repo("dataset", "me/rows", "")).entries) == 450  # ModelScope's SDK asks for 200
    if source == "modelscope":
        monkeypatch.setattr(_legacy_api, "REPO_FILES_TRUNCATION_LIMIT", 100)
        with pytest.raises(HubError, match="does not list all files of me/flat"):
            listed.listing(sources.Repo("model", "me/flat", ""))
    else:
        assert len(listed.listing(sources.Repo("model", "me/flat", "")).entries) == 453
        one = [{"type": "file", "path": "a", "size": 1, "oid": "0"}]
        hub.instead = {"tree": [(200, one * 2)]}
        with pytest.raises(HubError, match="no listing"):
            listed.listing(sources.Repo("model", "me/flat", ""))


def routed(name: str, hub: LoopbackHub, home: Path) -> sources.Source:
    from toolbox.config import Home
    from toolbox.hub import routing

    (one,) = routing.hubs(name, Settings(), Home(home), {"MODELSCOPE_DOMAIN": hub.url, "HF_ENDPOINT": hub.url})
    return one


def test_a_page_of_a_listing_that_never_comes_ends(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(huggingface, "PAGE_S", 0.02)
    hub.slow = {"tree": 0.2}
    with pytest.raises(HubError, match="it does not answer"):
        HuggingFace(hub.url).listing(sources.Repo("model", ID, ""))


def test_what_changes_between_listing_and_fetching_is_listed_again(hub: LoopbackHub, home: Path) -> None:
    newer = {**FILES, "model.safetensors": WEIGHTS[:-4], "config.json": b"{}"}

    def begun(title: str, total: int) -> Any:
        hub.add(ID, newer)
        return lambda size: None

    assert content(fetching.fetch(ask(hub, home, source="modelscope", progress=begun)).path) == newer


def test_where_nothing_may_be_written_the_verified_copy_is_used(
    hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetching.fetch(ask(hub, home)).path

    def closed(*given: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(store, "locked", closed)
    said: list[str] = []
    assert fetching.fetch(ask(hub, home, say=said.append)).path == path
    assert "Read-only file system" in said[0]
    with pytest.raises(Exception, match="can't be written") as caught:
        fetching.fetch(ask(hub, home, id="Qwen/other"))
    assert "YCDY_HOME" in getattr(caught.value, "remedy", "")


def test_why_a_hub_failed_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    far = HuggingFace("hub.example/")
    refused = OSError(errno.ECONNREFUSED, "Connection refused")
    assert sources.unreachable(far, refused).message == "Hugging Face (https://hub.example) failed: Connection refused."
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:9")
    assert "the proxy of HTTPS_PROXY" in sources.unreachable(far, refused).remedy
    assert "proxy" not in sources.unreachable(HuggingFace("https://hub.example"), refused).message
    clock = ssl.SSLCertVerificationError(1, "[SSL] certificate verify failed")
    clock.verify_message = "certificate is not yet valid"
    assert "not yet valid): the clock may be wrong" in sources.reason(clock)
    assert sources.reason(httpx.ProxyError("407")) == "the proxy does not let us through"
    assert sources.reason(httpx.ReadTimeout("")) == "it does not answer"


@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("7", 7, 7), ("9999", 60, 60), ("soon", 0, 0), ("", 0, 0), ("now", 0, 0), ("later", 20, 31),
        (f"Mon, 01 Jan {'9' * 30} 00:00:00 GMT", 0, 0),
    ],
)  # fmt: skip
def test_a_hub_says_how_long_to_wait_in_seconds_or_as_a_date(header: str, least: float, most: float) -> None:
    moment = {"now": -5, "later": 30}.get(header)
    text = email.utils.formatdate(time.time() + moment, usegmt=True) if moment else header
    response = httpx.Response(429, headers={"Retry-After": text}, request=httpx.Request("GET", "http://x"))
    with pytest.raises(httpx.HTTPStatusError) as caught:
        response.raise_for_status()
    assert least <= web.asked_wait_s(caught.value) <= most
