"""A serving engine for tests: speaks OpenAI's routes as engines do, and misbehaves when a prompt asks it to.

Started as an engine's interpreter would be (`python -P -m lmdeploy serve api_server …`); leaves its arguments, its
environment and the last request in seen.json in its working folder. Answers nobody without its key.
"""

import contextlib
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SEEN = Path("seen.json")
TOOL_PIECES = (
    [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}],
    [{"index": 0, "function": {"arguments": '{"city": "\\"model\\": \\"x\\""'}}],
    [{"index": 0, "function": {"arguments": "}"}}],
)
"""A call as engines stream it: its name first, its arguments in pieces of JSON."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self._has_key():
            self._json(200, {"status": "ok"})

    def do_POST(self) -> None:
        if not self._has_key():
            return None
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        SEEN.write_text(json.dumps({**json.loads(SEEN.read_text()), "path": self.path, "body": body}))
        if "input" in body:
            return self._json(200, {"data": [{"index": 0, "object": "embedding", "embedding": [0.5, -1.0]}]})
        prompt = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if prompt == "die":
            os._exit(9)
        if prompt == "fail":
            return self._json(500, "Internal Server Error")
        if prompt == "refuse":
            return self._json(400, {"detail": "Server is pinned to 'served'."})
        if prompt == "sleep":
            time.sleep(60)
        if body.get("stream"):
            return self._stream(prompt)
        self._json(200, _answer(f"you said {prompt}", "message"))

    def _has_key(self) -> bool:
        known = self.headers["authorization"] == f"Bearer {os.environ['YCDY_ENGINE_KEY']}"
        if not known:
            self._json(401, {"error": "Unauthorized"})
        return known

    def _stream(self, prompt: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if prompt == "tool":
            for piece in TOOL_PIECES:
                self._event(_answer("", "delta", tool_calls=piece))
            return self._event(_answer("", "delta", "tool_calls"))
        if prompt == "flood":
            return self._flood()
        for number in range(10**9 if prompt == "endless" else 3):
            self._event(_answer(f"{number}\u2028", "delta"))
            if prompt == "hang":
                time.sleep(60)
            if prompt == "die halfway":
                os._exit(9)
            if prompt == "fail halfway":
                return self._event({"error": "CUDA error: secret detail"})
            time.sleep(0.02)
        self._event(_answer("", "delta", "stop"))

    def _flood(self) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                self._event(_answer("x" * 100_000, "delta"))

    def _event(self, piece: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(piece, ensure_ascii=False).encode() + b"\n\n")
        self.wfile.flush()

    def _json(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None: ...


def _answer(text: str, place: str, finish_reason: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, place: {"role": "assistant", "content": text, **more}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "served@main",
        "choices": [choice],
        "usage": usage,
    }


if __name__ == "__main__":
    SEEN.write_text(json.dumps({"argv": sys.argv[1:], "environ": dict(os.environ)}))
    port = int(
        next(after for word, after in zip(sys.argv, sys.argv[1:], strict=False) if word in ("--port", "--server-port"))
    )
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
