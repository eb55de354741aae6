"""What /metrics tells Prometheus (text exposition format 0.0.4): requests, waiting, tokens, by model and by key."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
SPEEDS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1000.0)


class Call(msgspec.Struct, kw_only=True):
    """One request, from its headers to its last byte; what is not known yet is empty."""

    id: str
    route: str
    """One of the routes, never what a client typed."""
    began: float = msgspec.field(default_factory=time.monotonic)
    key: str = ""
    model: str = ""
    status: int = 0
    error: str = ""
    """Why it was not done, where the status came too early to tell."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    asked_at: float = 0.0
    """When the engine got it."""
    first_at: float = 0.0
    """When the first of the answer came."""
    streamed: bool = False


class Histogram:
    """Of one figure, by model."""

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self._name, self._help, self._bounds = name, help, bounds
        self._counts: Counter[tuple[str, float]] = Counter()
        self._sums: dict[str, float] = {}

    def add(self, model: str, value: float) -> None:
        self._sums[model] = self._sums.get(model, 0.0) + value
        for bound in (*self._bounds, float("inf")):
            self._counts[model, bound] += value <= bound

    def lines(self) -> Iterator[str]:
        yield f"# HELP {self._name} {self._help}\n# TYPE {self._name} histogram\n"
        for model, total in sorted(self._sums.items()):
            label = _label("model", model)
            for bound in (*self._bounds, float("inf")):
                le = "+Inf" if bound == float("inf") else f"{bound:g}"
                yield f'{self._name}_bucket{{{label},le="{le}"}} {self._counts[model, bound]}\n'
            yield f"{self._name}_sum{{{label}}} {total:.6f}\n"
            yield f"{self._name}_count{{{label}}} {self._counts[model, float('inf')]}\n"


class Metrics:
    """Counted in one event loop, so without locks."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.waiting = 0
        """Asked of the engine, and nothing of the answer is there yet: its queue, and prompts being read."""
        self._requests: Counter[tuple[str, int]] = Counter()
        self._by_key: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[tuple[str, str, str]] = Counter()
        self._seconds = Histogram("ycdy_request_seconds", "Time to the last byte of an answer.", SECONDS)
        self._first = Histogram("ycdy_time_to_first_token_seconds", "Of streams, from asking the engine.", SECONDS)
        self._speed = Histogram("ycdy_output_tokens_per_second", "Of one answer, after its first token.", SPEEDS)

    @property
    def requests(self) -> int:
        return self._requests.total()

    def tokens(self, kind: str) -> int:
        """All there were of `kind`: prompt or completion."""
        return sum(count for (_model, _key, each), count in self._tokens.items() if each == kind)

    def add(self, call: Call) -> None:
        """Count a request that has ended."""
        self._requests[call.route, call.status] += 1
        if call.key:
            self._by_key[call.key, call.status] += 1
        if not call.model:
            return
        self._seconds.add(call.model, time.monotonic() - call.began)
        self._tokens[call.model, call.key, "prompt"] += call.prompt_tokens
        self._tokens[call.model, call.key, "completion"] += call.completion_tokens
        if call.streamed and call.completion_tokens:
            self._first.add(call.model, call.first_at - call.asked_at)
        if call.streamed and call.completion_tokens > 1:
            speed = (call.completion_tokens - 1) / max(1e-6, time.monotonic() - call.first_at)
            self._speed.add(call.model, speed)

    def text(self, engine_up: bool, engine_restarts: int) -> str:
        return "".join(self._lines(engine_up, engine_restarts))

    def _lines(self, engine_up: bool, engine_restarts: int) -> Iterable[str]:
        yield from _head("ycdy_requests_total", "counter", "Requests answered.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'ycdy_requests_total{{route="{route}",status="{status}"}} {count}\n'
        yield from _head("ycdy_key_requests_total", "counter", "Requests answered, by the name of the key.")
        for (key, status), count in sorted(self._by_key.items()):
            yield f'ycdy_key_requests_total{{{_label("key", key)},status="{status}"}} {count}\n'
        yield from _head("ycdy_tokens_total", "counter", "Tokens read and written.")
        for (model, key, kind), count in sorted(self._tokens.items()):
            labels = f'{_label("model", model)},{_label("key", key)},kind="{kind}"'
            yield f"ycdy_tokens_total{{{labels}}} {count}\n"
        for histogram in (self._seconds, self._first, self._speed):
            yield from histogram.lines()
        yield from _one("ycdy_requests_in_flight", "gauge", "Requests being answered.", self.in_flight)
        yield from _one("ycdy_requests_waiting", "gauge", "Requests the engine has said nothing to yet.", self.waiting)
        yield from _one("ycdy_engine_up", "gauge", "Whether the engine answers.", int(engine_up))
        yield from _one("ycdy_engine_restarts_total", "counter", "Times the engine was restarted.", engine_restarts)


def _head(name: str, kind: str, help: str) -> Iterable[str]:
    yield f"# HELP {name} {help}\n# TYPE {name} {kind}\n"


def _one(name: str, kind: str, help: str, value: int) -> Iterable[str]:
    yield from _head(name, kind, help)
    yield f"{name} {value}\n"


def _label(name: str, value: Any) -> str:
    escaped = str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'
