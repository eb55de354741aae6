"""`evaluate --endpoint`: a server gives the scores of the model it serves, whatever goes wrong on the way."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from serving_help import KEY, plan, server

from toolbox import client
from toolbox.errors import EngineError, InputError
from toolbox.evaluation.endpoint import Endpoint, check
from toolbox.evaluation.requests import Server
from toolbox.suites import Suite


class Standin(BaseHTTPRequestHandler):
    """Says every third request to come later, knows no chat_template_kwargs, and likes each character half as much."""

    asked: ClassVar[list[dict[str, Any]]] = []
    refused = 0

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.answer(401, {"error": "no"})
        if len(self.asked) % 3 == 1:
            return self.answer(429, {"error": "later"}, {"Retry-After": "7"})
        if "chat_template_kwargs" in body:
            return self.answer(400, {"error": {"message": "chat_template_kwargs: extra fields not permitted"}})
        if "messages" in body:
            said = body["messages"][-1]["content"].upper()
            return self.answer(200, {"choices": [{"message": {"content": said}}]})
        tokens = [*body["prompt"], "!"]
        told = {
            "tokens": tokens, "text_offset": list(range(len(tokens))),
            "token_logprobs": [None, *(-0.5 for _token in tokens[1:])],
            "top_logprobs": [None, *({token: -0.5, "z": -0.2 if token == "x" else -3.0} for token in tokens[1:])],
        }  # fmt: skip
        return self.answer(200, {"choices": [{"text": body["prompt"] + "!", "logprobs": told}]})

    def do_GET(self) -> None:
        self.asked.append({})
        if len(self.asked) < 3:
            return self.answer(503, {"error": "loading"}, {"Retry-After": "7"})
        if self.headers["Authorization"] != f"Bearer {KEY}":
            return self.answer(401, {"error": "no"})
        return self.answer(200, {"data": [{"id": "some"}]})

    def answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        data = json.dumps(body).encode()
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *said: Any) -> None: ...


@pytest.fixture
def standin() -> Iterator[str]:
    Standin.asked.clear()
    http = ThreadingHTTPServer(("127.0.0.1", 0), Standin)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}/v1"
    http.shutdown()
    http.server_close()


def test_what_a_server_says_comes_in_order_through_refusals_and_delays(standin: str) -> None:
    waited: list[float] = []
    subject = Endpoint("base", Server(standin, "some", KEY, waited.append))
    words = [f"word {number}" for number in range(9)]
    said = subject.generate([[{"role": "user", "content": word}] for word in words])
    assert said == [word.upper() for word in words]
    assert set(waited) == {7.0}
    before = len(Standin.asked)
    assert subject.generate([[{"role": "user", "content": "word 3"}]]) == ["WORD 3"]
    assert len(Standin.asked) == before, "it was asked before"


def test_texts_are_scored_where_the_continuation_begins(standin: str) -> None:
    subject = Endpoint("base", Server(standin, "some", KEY, lambda wait: None))
    plain, unlikely, whole = subject.texts([("ab ", "cd"), ("ab", "xd"), ("", "abc")])
    assert (plain.tokens, plain.log_likelihoods, plain.greedy) == ([" ", "c", "d"], [-0.5] * 3, True)
    assert (unlikely.tokens, unlikely.greedy) == (["x", "d"], False)
    assert whole.tokens == ["b", "c"]


def test_what_no_server_can_names_what_it_can(standin: str) -> None:
    subject = Endpoint("base", Server(standin, "some", KEY))
    with pytest.raises(InputError) as refused:
        subject.choices([([], "", ("a", "b"))])
    assert "exact_match" in refused.value.remedy
    fit, lean = (Suite(name=kind, kind=kind, path=Path()) for kind in ("bbq", "gender"))
    check(subject, [fit])
    with pytest.raises(InputError, match="gender needs the model itself"):
        check(subject, [fit, lean])
    with pytest.raises(InputError) as keyless:
        Endpoint("base", Server(standin, "some", "sk-wrong")).complete(["a"], max_new_tokens=1)
    assert "sk-wrong" not in keyless.value.message + keyless.value.remedy


def test_a_server_that_starts_is_waited_for_and_one_that_refuses_is_not(standin: str) -> None:
    waited: list[float] = []
    url = standin.removesuffix("/v1")
    assert client.models(url, KEY, waited.append) == ["some"]
    assert waited == [7.0, 7.0]
    for key in ("", "sk-wrong"):
        with pytest.raises(InputError) as keyless:
            client.models(url, key, waited.append)
        assert "YCDY_EVALUATE_ENDPOINT_KEY" in keyless.value.remedy
        assert "sk-wrong" not in keyless.value.message + keyless.value.remedy
    assert waited == [7.0, 7.0]
    with pytest.raises(EngineError):
        client.models("http://127.0.0.1:9", KEY, waited.append)
    assert client.STARTING_S - client.AGAIN_S <= sum(waited[2:]) <= client.STARTING_S
    with pytest.raises(EngineError):
        client.models("nowhere", KEY, pytest.fail)


@pytest.mark.slow
def test_a_server_scores_as_the_model_that_it_serves(toolbox_cli: Any, home: Path) -> None:
    """Our own gateway and engine on the embedded model: the same answers, and the key is in no file of the run."""
    words = ("--suite", "demo-qa", "--json")
    alone = toolbox_cli("evaluate", "--model", "demo", *words).done().json
    with server(home / "served", plan(Path(sys.executable))) as served:
        asked = ("--endpoint", served.facts["url"], "--endpoint-key", KEY)
        there = toolbox_cli("evaluate", *asked, *words).done().json
    assert there["results"] == alone["results"]
    run = home / "runs" / there["run"]
    assert not [path for path in run.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    rows = [
        json.loads((home / "runs" / result["run"] / "evaluation" / "1-demo-qa.json").read_text())["rows"]
        for result in (alone, there)
    ]
    assert rows[0] == rows[1]
