"""The gateway's bounds in front of a stand-in engine: keys, denial of service, media, draining, what is logged."""

import base64
import contextlib
import hashlib
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from serving_help import KEY, Server, plan, server, standin_interpreter, until

from toolbox import access
from toolbox.engines import ENGINES
from toolbox.errors import InputError
from toolbox.limits import Limits, parse
from toolbox.serving.accounts import Bucket

ALICE, BOB, CAROL = "sk-alice-canary-1", "sk-bob-canary-2", "sk-carol-canary-3"
QUICK = Limits(
    headers_s=0.5, body_s=1, body_bytes=1 << 20, linger_s=0.5, write_s=0.5, answer_s=20, stuck_s=1, drain_s=0.5
)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In front of an engine that has everything."""
    folder = tmp_path_factory.mktemp("bounds")
    keys = folder / "keys.yaml"
    lines = [
        {"name": "alice", "key": ALICE, "requests_per_minute": 3, "tokens_per_minute": 100_000},
        {"name": "bob", "key_sha256": hashlib.sha256(BOB.encode()).hexdigest(), "concurrent": 1},
        {"name": "carol", "key": CAROL, "tokens_per_minute": 9},
    ]
    keys.write_bytes(msgspec.yaml.encode(lines))
    keys.chmod(0o600)
    every = msgspec.structs.replace(
        ENGINES["transformers"], features=frozenset({"tools", "media", "embeddings"}),
        ignores=frozenset({"response_format"}),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "transformers", every)
        made = plan(standin_interpreter(folder / "python"), limits=QUICK, api_keys=keys)
        with server(folder / "runs", made) as running:
            yield running


@contextlib.contextmanager
def connection(gateway: Server) -> Iterator[socket.socket]:
    address = ("127.0.0.1", httpx.URL(gateway.facts["url"]).port or 0)
    with socket.create_connection(address, timeout=20) as opened:
        yield opened


def head(*lines: str) -> bytes:
    told = ["POST /v1/chat/completions HTTP/1.1", "Host: x", f"Authorization: Bearer {KEY}", *lines, "", ""]
    return "\r\n".join(told).encode()


def ended(opened: socket.socket) -> bytes:
    """What comes until the other side closes. Fails by timeout where it does not."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := opened.recv(1 << 16):
            got += data
    return got


def slow_headers(gateway: Server) -> None:
    """Slowloris: a header now and then, and none that ends it; on a fresh connection and on one that was used."""
    for first in (b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"):
        with connection(gateway) as opened:
            opened.sendall(first)
            opened.sendall(b"GET /health HTTP/1.1\r\n")
            stop = threading.Event()

            def trickle(to: socket.socket = opened, stop: threading.Event = stop) -> None:
                with contextlib.suppress(OSError):
                    while not stop.wait(0.1):
                        to.sendall(b"X-A: b\r\n")

            thread = threading.Thread(target=trickle)
            thread.start()
            got = ended(opened)
            stop.set()
            thread.join()
            assert got.count(b"HTTP/1.1 200") == bool(first)


def chunks_without_end(gateway: Server) -> None:
    def send_for_ever(opened: socket.socket) -> None:
        while True:
            opened.sendall(b"10000\r\n" + b" " * 0x10000 + b"\r\n")

    with connection(gateway) as opened:
        opened.sendall(head("Transfer-Encoding: chunked"))
        with pytest.raises(ConnectionError):
            send_for_ever(opened)


def a_hundred_megabytes(gateway: Server) -> None:
    with connection(gateway) as opened, contextlib.suppress(ConnectionError):
        opened.sendall(head("Content-Length: 104857600"))
        assert opened.recv(20).startswith(b"HTTP/1.1 413")
        for _number in range(1600):
            opened.sendall(b" " * 0x10000)
    answer = gateway.client.post("/v1/chat/completions", content=(b" " * (1 << 20) for _ in range(3)))
    assert answer.json()["error"]["code"] == "body_too_large"


def half_a_body(gateway: Server) -> None:
    with connection(gateway) as opened:
        opened.sendall(head("Content-Length: 9") + b"{")
        assert ended(opened).startswith(b"HTTP/1.1 408")


def a_body_for_nobody(gateway: Server) -> None:
    """Without a key, a body is taken for a while and the connection ended."""
    with connection(gateway) as opened:
        opened.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert ended(opened).startswith(b"HTTP/1.1 401")


def packed_bodies(gateway: Server) -> None:
    bomb = zlib.compress(b" " * 10_000_000)
    for encoding in ("gzip", "deflate", "br", "gzip, gzip"):
        answer = gateway.client.post("/v1/chat/completions", content=bomb, headers={"Content-Encoding": encoding})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_encoding")


def deep_json(gateway: Server) -> None:
    opening = b'{"messages":[{"role":"user","content":"x"}],"response_format":'
    for nested in (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"a":' + b"[" * 300_000):
        answer = gateway.client.post("/v1/chat/completions", content=opening + nested + b"}")
        assert answer.status_code == 400


def many_at_once_on_one_connection(gateway: Server) -> None:
    """Pipelining: answered in their order, the broken one ends it."""
    body = b'{"messages":[{"role":"user","content":"hello"}]}'
    with connection(gateway) as opened:
        opened.sendall((head(f"Content-Length: {len(body)}") + body) * 20 + b"\x00 nonsense\r\n\r\n")
        got = ended(opened)
    assert got.count(b"HTTP/1.1 200") == 20
    assert got.count(b"you said hello") == 20


def two_lengths(gateway: Server) -> None:
    """Request smuggling: a proxy in front would read one of the lengths and we the other."""
    for lines in (["Content-Length: 9", "Content-Length: 1"], ["Content-Length: -1"], ["Content-Length: 5", "Host: y"]):
        with connection(gateway) as opened:
            opened.sendall(head(*lines))
            assert ended(opened).startswith(b"HTTP/1.1 400")


def a_reader_that_stops(gateway: Server) -> None:
    """What is endless, and nobody reads it: the engine is let go once the client's place in memory is full."""
    with connection(gateway) as opened:
        body = b'{"stream":true,"messages":[{"role":"user","content":"flood"}]}'
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.sendall(head(f"Content-Length: {len(body)}") + body)
        until(lambda: "ycdy_requests_in_flight 1\n" in gateway.client.get("/metrics").text)


@pytest.mark.parametrize(
    "attack",
    [
        slow_headers, chunks_without_end, a_hundred_megabytes, half_a_body, a_body_for_nobody, packed_bodies, deep_json,
        many_at_once_on_one_connection, two_lengths, a_reader_that_stops,
    ],
)  # fmt: skip
def test_after_huge_malformed_and_endless_requests_the_server_is_healthy(gateway: Server, attack: Any) -> None:
    attack(gateway)
    assert gateway.client.get("/health").json() == {"status": "ok"}
    assert gateway.chat("hello").status_code == 200
    until(lambda: "ycdy_requests_in_flight 1\n" in gateway.client.get("/metrics").text)


def test_each_key_has_its_own_bounds_and_only_its_name_is_told(
    gateway: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    def ask(key: str, text: str = "hello", **more: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **more}
        headers = {"Authorization": f"Bearer {key}"}
        return gateway.client.post("/v1/chat/completions", json=body, headers=headers)

    answers = [ask(ALICE) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-tokens"] == "100000"
    assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20
    assert "x-ratelimit-limit-requests" not in gateway.chat("hello").headers
    with gateway.client.stream(
        "POST", "/v1/chat/completions", headers={"Authorization": f"Bearer {BOB}"},
        json={"messages": [{"role": "user", "content": "endless"}], "stream": True},
    ) as answer:  # fmt: skip
        pieces = answer.iter_raw()  # kept: let go, it would hang up
        assert next(pieces)
        assert ask(BOB).json()["error"]["code"] == "too_many_requests"
    until(lambda: ask(BOB).status_code == 200)
    assert [ask(CAROL).status_code for _ in range(2)] == [200, 429]
    metrics = gateway.client.get("/metrics").text
    assert 'ycdy_key_requests_total{key="alice",status="429"} 1' in metrics
    assert 'ycdy_tokens_total{model="demo",key="alice",kind="completion"} 15' in metrics
    assert 'ycdy_time_to_first_token_seconds_count{model="demo"}' in metrics
    assert "canary" not in metrics + capfd.readouterr().out
    written = b"".join(path.read_bytes() for path in gateway.run.path.iterdir() if path.is_file())
    assert not any(key.encode() in written for key in (ALICE, BOB, CAROL))


def test_a_bucket_fills_evenly_and_pays_its_debts() -> None:
    now = [0.0]
    bucket = Bucket(60, lambda: now[0])
    bucket.take(90)
    assert bucket.wait_s(1) == 31
    now[0] = 31.0
    assert bucket.wait_s(1) == 0
    now[0] = 1e6
    assert bucket.level() == 60


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        ("- {name: a, key: sk-12345678}", 0o644, "Others on this machine"),
        ("- {name: a}", 0o600, "needs a key"),
        ("- {name: a, key: short}", 0o600, "can't be used"),
        ("- {name: owner, key: sk-12345678}", 0o600, "twice"),
        ("- {name: a, key: sk-12345678}\n- {name: b, key: sk-12345678}", 0o600, "twice"),
        ("- {name: a, key: sk-12345678, rpm: 4}", 0o600, "unknown field"),
        ("!!python/object/apply:os.system ['touch x']", 0o600, "can't be read"),
    ],
)
def test_a_keys_file_that_promises_less_than_it_seems_is_refused(
    tmp_path: Path, text: str, mode: int, why: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(InputError, match=why):
        access.read_keys(path)


def test_limits_are_named_and_bounded() -> None:
    assert parse(["answer_s=30", "body_bytes=4096"]) == Limits(answer_s=30, body_bytes=4096)
    for words, why in [(["bodybytes=1"], "no limit 'bodybytes'"), (["in_flight=0"], ">= 1"), (["answer_s"], "float")]:
        with pytest.raises(InputError, match=why):
            parse(words)


def picture(kind: str = "PNG", size: tuple[int, int] = (2, 3)) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", size).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def huge_png() -> str:
    """A few bytes that say they are 60000 x 60000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunk).decode()


def test_an_engine_that_sees_gets_pictures_as_data_and_nothing_that_would_be_fetched(gateway: Server) -> None:
    """Attack row 5; a listener of ours would notice a request, and its redirect inwards would be followed."""
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        listener.settimeout(0.2)
        urls = [
            f"http://127.0.0.1:{port}/", f"http://localhost:{port}/redirect?to=http://169.254.169.254/", "http://[::1]/",
            "http://169.254.169.254/latest/meta-data", "http://100.100.100.200/", f"http://[::ffff:127.0.0.1]:{port}/",
            f"http://2130706433:{port}/", f"http://0x7f.1:{port}/", "file:///etc/passwd", "media_evil/x.png",
            "../media_evil/x.png", f"http:\\\\127.0.0.1:{port}\\", "ftp://127.0.0.1/", "", "data:,x",
            "data:text/html;base64,PGI+", "data:image/svg+xml;base64,PHN2Zz4=", "data:image/png,x", huge_png(),
            picture().replace("png", "jpeg", 1), picture()[:60], "data:image/png;base64,****", f" {picture()}",
            "data:image/gif;base64," + base64.b64encode(b"GIF8" + b"\0" * (9 << 20)).decode(),
        ]  # fmt: skip
        for url in urls:
            answer = gateway.chat([{"type": "image_url", "image_url": {"url": url}}])
            assert answer.status_code in (400, 413), url[:60]
            asked.append(answer.json()["error"]["code"])
        with pytest.raises(TimeoutError):
            listener.accept()
    assert set(asked) == {"media_not_supported", "body_too_large"}
    for kind in ("PNG", "JPEG", "GIF", "WEBP"):
        part = {"type": "image_url", "image_url": {"url": picture(kind)}}
        assert gateway.chat([{"type": "text", "text": "look"}, part]).status_code == 200
        assert gateway.seen()["body"]["messages"][-1]["content"][1] == part
    answer = gateway.chat([{"type": "video_url", "video_url": {"url": picture()}}])
    assert answer.json()["error"]["code"] == "media_not_supported"


def test_embeddings_come_as_numbers_and_as_openais_own_client_asks_for_them(gateway: Server) -> None:
    def ask(**body: Any) -> httpx.Response:
        return gateway.client.post("/v1/embeddings", json=body)

    plain = ask(input=["a", "b"], model="demo").json()
    assert (plain["data"][0]["embedding"], plain["model"]) == ([0.5, -1.0], "demo")
    packed = ask(input="a", encoding_format="base64").json()["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -1.0)
    assert gateway.seen()["body"] == {"model": "served", "input": "a"}
    assert ask(input=[]).status_code == ask(input=[1]).status_code == ask(input="a", x=1).status_code == 400
    assert ask(input="x " * 20_000).json()["error"]["code"] == "context_length_exceeded"
    assert ask(input="a", model="other").status_code == 404


def test_tool_calls_are_passed_on_as_the_engine_streams_them(gateway: Server) -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    lines = gateway.chat("tool", stream=True, tools=tools).content.split(b"\n\n")
    pieces = [msgspec.json.decode(line.removeprefix(b"data: ")) for line in lines[:-2]]
    calls = [call for piece in pieces for call in piece["choices"][0]["delta"].get("tool_calls") or []]
    assert calls[0]["function"]["name"] == "weather"
    assert msgspec.json.decode("".join(call["function"]["arguments"] for call in calls)) == {"city": '"model": "x"'}
    assert pieces[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert {piece["model"] for piece in pieces} == {"demo"}
    assert gateway.seen()["body"]["tools"] == tools


def test_what_an_engine_would_disregard_is_refused(gateway: Server) -> None:
    assert gateway.chat("hello", response_format={"type": "text"}, tool_choice="required").status_code == 200
    error = gateway.chat("hello", response_format={"type": "json_object"}).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "response_format")


def test_an_engine_that_writes_no_more_is_restarted_and_its_client_told(gateway: Server) -> None:
    text = gateway.chat("hang", stream=True).text
    assert text.count("data: ") == 2
    assert '"code":"engine_unavailable"' in text
    answer = gateway.chat("hello")
    assert (answer.status_code, answer.headers.get("retry-after")) in ((503, "2"), (200, None))
    until(lambda: gateway.chat("hello").status_code == 200)


def test_stopping_takes_nothing_new_and_tells_those_that_take_too_long(tmp_path: Path) -> None:
    limits = Limits(drain_s=1.5)
    with server(tmp_path, plan(standin_interpreter(tmp_path / "python"), limits=limits)) as running:
        body = {"messages": [{"role": "user", "content": "endless"}], "stream": True}
        with running.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            pieces = answer.iter_raw()
            assert next(pieces)
            running.stop()
            until(lambda: running.client.get("/health").json() == {"status": "stopping"})
            refused = running.chat("hello")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_stopping")
            assert refused.headers["retry-after"]
            assert '"code":"server_stopping"' in b"".join(pieces).decode()


def test_contents_are_logged_only_where_that_was_asked_for(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with server(tmp_path, plan(standin_interpreter(tmp_path / "python"), log_contents=True)) as running:
        running.chat("a canary")
        running.chat("a canary", stream=True)
    logged = [msgspec.json.decode(line) for line in capfd.readouterr().out.split("\n") if '"contents"' in line]
    assert [line["answer"] for line in logged] == ["you said a canary", "0\u20281\u20282\u2028"]
    assert logged[0]["asked"][0]["content"] == "a canary"
