"""The gateway in front of a stand-in engine: keys, limits, malformed and endless requests, an engine that dies."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest
from serving_help import KEY, Server, plan, server, standin_interpreter, until

from toolbox.limits import Limits


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gateway")
    with server(folder / "runs", plan(standin_interpreter(folder / "python"))) as running:
        yield running


def test_every_route_wants_the_key_except_health(gateway: Server) -> None:
    routes = [
        "/",
        "/metrics",
        "/v1/models",
        "/models",
        "/v1/chat/completions",
        "/v1/embeddings",
        "/docs",
        "/health/",
        "/nonsense",
    ]
    with httpx.Client(base_url=gateway.facts["url"], trust_env=False) as stranger:
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": KEY},
            {"Authorization": b"Bearer \xe9"},
        ):
            for route in routes:
                for method in ("GET", "POST", "DELETE", "OPTIONS"):
                    answer = stranger.request(method, route, headers=headers)
                    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), route
        assert stranger.get("/health").json() == {"status": "ok"}


def test_clients_see_the_public_name_and_the_engine_its_own(gateway: Server) -> None:
    answer = gateway.chat("hello", model="demo").json()
    assert answer["model"] == "demo"
    assert answer["choices"][0]["message"]["content"] == "you said hello"
    assert gateway.seen()["body"]["model"] == "served"
    assert gateway.client.get("/v1/models").json()["data"][0]["id"] == "demo"
    assert gateway.client.get("/v1/models/demo").status_code == 200
    assert gateway.client.get("/v1/models/other").status_code == 404
    assert gateway.chat("hello", model="gpt-5").json()["error"]["code"] == "model_not_found"


def test_the_engines_own_port_answers_nobody_else_on_this_machine(gateway: Server) -> None:
    """Attack row 14: loopback is shared by all who have an account here; environments are not."""
    seen = gateway.seen()
    engine = f"http://127.0.0.1:{seen['argv'][seen['argv'].index('--port') + 1]}"
    body = {"messages": [{"role": "user", "content": "die"}]}
    for headers in ({}, {"Authorization": f"Bearer {KEY}"}):
        answer = httpx.post(f"{engine}/v1/chat/completions", json=body, headers=headers, trust_env=False)
        assert answer.status_code == 401
    lines = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert seen["environ"]["YCDY_ENGINE_KEY"].encode() not in b"".join(lines)
    assert gateway.chat("hello").status_code == 200


def test_a_stream_is_passed_on_piece_by_piece_and_ends_with_done(gateway: Server) -> None:
    lines = [line for line in gateway.chat("hello", stream=True).content.split(b"\n") if line]
    pieces = [msgspec.json.decode(line.removeprefix(b"data: ")) for line in lines[:-1]]
    assert lines[-1] == b"data: [DONE]"
    assert [piece["choices"][0]["delta"]["content"] for piece in pieces] == ["0\u2028", "1\u2028", "2\u2028", ""]
    assert {piece["model"] for piece in pieces} == {"demo"}


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"\xff\xfe", 400, "invalid_json"),
        (b'{"messages":[{"role":"user","content":"x"}],"tools":[{"a":' + b"[" * 100_000, 400, "invalid_json"),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', 400, "invalid_json"),
        (b"[]", 400, "invalid_value"),
        (b"{}", 400, "invalid_value"),
        (b'{"messages":[]}', 400, "invalid_value"),
        (b'{"messages":[{"role":"robot","content":"x"}]}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":0}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1e99}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"temperature":-1}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"tools":[{"function":{"name":"x"}}]}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"generation_config":"{}"}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"chat_template":"x"}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"x"}],"chat_template_kwargs":{"tools":1}}', 400, "invalid_value"),
        (b'{"messages":[{"role":"user","content":"' + b"x " * 20_000 + b'"}]}', 400, "context_length_exceeded"),
        (b'{"messages":[{"role":"user","content":"' + b"x" * (9 << 20) + b'"}]}', 413, "body_too_large"),
    ],
)  # fmt: skip
def test_what_no_engine_should_see_is_answered_in_openais_shape(
    gateway: Server, body: bytes, status: int, code: str
) -> None:
    answer = gateway.client.post("/v1/chat/completions", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert gateway.chat("hello").status_code == 200


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://169.254.169.254/latest", "http://100.100.100.200/", "http://[::ffff:127.0.0.1]/",
        "http://2130706433/", "file:///etc/passwd", "http:\\\\127.0.0.1\\", "media_evil/x.png",
        "data:image/png;base64,AAAA",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url", "input_audio", "file"])
def test_media_never_reach_the_engine(gateway: Server, url: str, kind: str) -> None:
    gateway.chat("before")
    answer = gateway.chat([{"type": "text", "text": "look"}, {"type": kind, kind: {"url": url}}])
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "media_not_supported")
    assert gateway.seen()["body"]["messages"][-1]["content"] == "before"


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("chat/completions", {"temperature": 3}, "temperature"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ("chat/completions", {"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ("chat/completions", {"logit_bias": {"5": 1e308}}, "logit_bias[...]"),
        ("chat/completions", {"messages": None}, "messages"),
        ("chat/completions", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("chat/completions", {"modalities": ["audio"]}, "modalities[0]"),
        ("chat/completions", {"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1]}, "prompt[0]"),
        ("completions", {"prompt": "a " * 2000}, "prompt"),
        ("completions", {"echo": True}, "echo"),
        ("completions", {"best_of": 4}, "best_of"),
    ],
)
def test_a_refusal_names_the_field_as_openai_does(
    gateway: Server, route: str, fields: dict[str, object], param: str
) -> None:
    body = _asked("x", **fields) if route.startswith("chat") else {"prompt": "x", **fields}
    error = gateway.client.post(f"/v1/{route}", json=body).json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_what_concerns_no_answer_or_asks_for_nothing_never_reaches_the_engine(gateway: Server) -> None:
    told = {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "modalities": ["text"], "user": "u"}
    assert gateway.chat("hello", **told).status_code == 200
    assert not {"store", "metadata", "service_tier", "modalities"} & set(gateway.seen()["body"])
    old = {"prompt": ["hello"], "echo": False, "best_of": 1, "suffix": None, "max_tokens": 4}
    assert gateway.client.post("/v1/completions", json=old).status_code == 200
    body = gateway.seen()["body"]
    assert (body["prompt"], {"echo", "best_of", "suffix"} & set(body)) == ("hello", set())


def test_a_wrong_method_or_slash_is_told_and_leads_nowhere(gateway: Server) -> None:
    answer = gateway.client.get("/v1/chat/completions")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["message"] == "This route takes POST, not GET."
    answer = gateway.client.post("/v1/chat/completions/", json=_asked("hello"), headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_answers_are_bounded_by_the_models_context(gateway: Server) -> None:
    gateway.chat("hello", max_tokens=10**9)
    assert gateway.seen()["body"]["max_tokens"] < 512
    gateway.chat("hello", max_completion_tokens=7, max_tokens=9)
    assert gateway.seen()["body"]["max_tokens"] == 7
    assert "max_completion_tokens" not in gateway.seen()["body"]


def test_a_request_without_a_temperature_gets_the_models_own(gateway: Server) -> None:
    gateway.chat("hello")
    assert gateway.seen()["body"]["temperature"] == 0
    gateway.chat("hello", temperature=0.5)
    assert gateway.seen()["body"]["temperature"] == 0.5


@pytest.mark.parametrize(("text", "status"), [("fail", 502), ("refuse", 400)])
def test_an_engines_own_errors_keep_openais_shape(gateway: Server, text: str, status: int) -> None:
    answer = gateway.chat(text)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]


def test_an_error_in_the_middle_of_a_stream_is_told_without_details(gateway: Server) -> None:
    text = gateway.chat("fail halfway", stream=True).text
    assert '"code":"engine_error"' in text
    assert "secret" not in text
    assert "[DONE]" not in text


def test_a_client_that_hangs_up_frees_its_place(gateway: Server) -> None:
    with gateway.client.stream("POST", "/v1/chat/completions", json=_asked("endless", stream=True)) as answer:
        assert next(answer.iter_raw())
    with pytest.raises(httpx.ReadTimeout):
        gateway.client.post("/v1/chat/completions", json=_asked("sleep"), timeout=0.5)
    until(lambda: "ycdy_requests_in_flight 1\n" in gateway.client.get("/metrics").text)


def test_broken_http_does_no_harm(gateway: Server) -> None:
    for junk in (
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000,
        b"POST /v1/models HTTP/1.1\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", httpx.URL(gateway.facts["url"]).port or 0)) as connection:
            connection.sendall(junk)
    assert gateway.chat("hello").status_code == 200


def test_an_engine_that_dies_is_answered_503_and_comes_back(gateway: Server) -> None:
    answer = gateway.chat("die")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unavailable")
    until(lambda: gateway.chat("hello").status_code == 200)
    assert '"code":"engine_unavailable"' in gateway.chat("die halfway", stream=True).text
    until(lambda: gateway.chat("hello").status_code == 200)
    restarts = re.search(r"^ycdy_engine_restarts_total (\d+)", gateway.client.get("/metrics").text, re.MULTILINE)
    assert restarts
    assert int(restarts[1]) >= 2


def test_too_many_and_too_slow_requests_are_refused(tmp_path: Path) -> None:
    limits = Limits(in_flight=2, body_s=0.3, headers_s=0.3, answer_s=1.5, drain_s=1)
    with server(tmp_path, plan(standin_interpreter(tmp_path / "python"), limits=limits)) as running:
        address = ("127.0.0.1", httpx.URL(running.facts["url"]).port or 0)
        with socket.create_connection(address) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(address) as slow:
            head = [
                "POST /v1/chat/completions HTTP/1.1",
                "Host: x",
                f"Authorization: Bearer {KEY}",
                "Content-Length: 9",
            ]
            slow.sendall("\r\n".join([*head, "", ""]).encode())
            assert slow.recv(20).startswith(b"HTTP/1.1 408")
        with (
            running.client.stream("POST", "/v1/chat/completions", json=_asked("endless", stream=True)) as one,
            running.client.stream("POST", "/v1/chat/completions", json=_asked("endless", stream=True)) as two,
        ):
            assert running.chat("hello").json()["error"]["code"] == "too_many_requests"
            assert [b"engine_timeout" in stream.read() for stream in (one, two)] == [True, True]
        assert running.chat("sleep").json()["error"]["code"] == "engine_timeout"
        until(lambda: running.chat("hello").status_code == 200)


def test_the_log_and_the_metrics_tell_no_content_and_no_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with server(tmp_path, plan(standin_interpreter(tmp_path / "python"))) as running:
        running.chat("a canary prompt")
        running.client.get("/canary-path?key=canary-query")
        metrics = running.client.get("/metrics").text
    told = capfd.readouterr().out + metrics
    requests = [line for line in map(_json, told.splitlines()) if line.get("event") == "request"]
    assert [(line["route"], line["status"]) for line in requests][:2] == [("/v1/chat/completions", 200), ("other", 404)]
    assert 'ycdy_tokens_total{model="demo",key="owner",kind="completion"} 5' in metrics
    assert "canary" not in told
    assert running.result["requests"] == 3


def _asked(text: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": text}], **more}


def _json(line: str) -> dict[str, object]:
    try:
        return json.loads(line)
    except ValueError:
        return {}
