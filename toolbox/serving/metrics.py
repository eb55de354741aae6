"""What /metrics tells Prometheus: requests, seconds, tokens, the engine's health (text exposition format 0.0.4)."""

from collections import Counter
from collections.abc import Iterable

BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counted in one event loop, so without locks."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.tokens = Counter(prompt=0, completion=0)
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._seconds = 0.0

    @property
    def requests(self) -> int:
        return self._requests.total()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered. `route` is one of the routes, never what a client typed."""
        self._requests[route, status] += 1
        self._seconds += seconds
        self._buckets.update(bound for bound in BUCKETS_S if seconds <= bound)

    def usage(self, usage: object) -> None:
        """Count the tokens of an answer's `usage` object, where the engine gave one."""
        if isinstance(usage, dict):
            for kind in self.tokens:
                if isinstance(count := usage.get(f"{kind}_tokens"), int):
                    self.tokens[kind] += count

    def text(self, engine_up: bool, engine_restarts: int) -> str:
        return "".join(self._lines(engine_up, engine_restarts))

    def _lines(self, engine_up: bool, engine_restarts: int) -> Iterable[str]:
        yield "# HELP ycdy_requests_total Requests answered.\n# TYPE ycdy_requests_total counter\n"
        for (route, status), count in sorted(self._requests.items()):
            yield f'ycdy_requests_total{{route="{route}",status="{status}"}} {count}\n'
        yield "# HELP ycdy_request_seconds Time to the last byte of an answer.\n# TYPE ycdy_request_seconds histogram\n"
        for bound in BUCKETS_S:
            yield f'ycdy_request_seconds_bucket{{le="{bound}"}} {self._buckets[bound]}\n'
        yield f'ycdy_request_seconds_bucket{{le="+Inf"}} {self.requests}\n'
        yield f"ycdy_request_seconds_sum {self._seconds:.6f}\nycdy_request_seconds_count {self.requests}\n"
        yield "# HELP ycdy_tokens_total Tokens read and written.\n# TYPE ycdy_tokens_total counter\n"
        for kind, count in self.tokens.items():
            yield f'ycdy_tokens_total{{kind="{kind}"}} {count}\n'
        yield from _one("ycdy_requests_in_flight", "gauge", "Requests being answered.", self.in_flight)
        yield from _one("ycdy_engine_up", "gauge", "Whether the engine answers.", int(engine_up))
        yield from _one("ycdy_engine_restarts_total", "counter", "Times the engine was restarted.", engine_restarts)


def _one(name: str, kind: str, help: str, value: int) -> Iterable[str]:
    yield f"# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n"
