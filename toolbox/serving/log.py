"""The server's log: one JSON object a line on standard output, never with a key or with what people wrote."""

import time
from typing import Any

import msgspec


def log(event: str, **facts: Any) -> None:
    """Write one line: when (UTC), what, and facts of the event's own."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(msgspec.json.encode({"time": now, "event": event, **facts}, enc_hook=str).decode(), flush=True)
