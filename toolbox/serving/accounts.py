"""Who asks: keys, and what the holder of each may ask for in a minute and at once (`serve --api-keys FILE`)."""

import hashlib
import math
import time
from collections.abc import Callable, Iterable

from toolbox.access import OWNER, ApiKey
from toolbox.serving.refused import Refused

MINUTE_S = 60.0


class Bucket:
    """A token bucket: holds what a minute allows, fills evenly, and may be overdrawn by one request.

    `per_minute` 0 is no bound.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute, self._clock = per_minute, clock
        self._level, self._at = float(per_minute), clock()

    def level(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / MINUTE_S)
        self._at = now
        return self._level

    def take(self, amount: float) -> None:
        if self.per_minute:
            self._level = self.level() - amount

    def wait_s(self, amount: float) -> float:
        """Until `amount` is there; 0 where it is."""
        return max(0.0, (amount - self.level()) * MINUTE_S / self.per_minute) if self.per_minute else 0.0


class Account:
    """The holder of one key."""

    def __init__(self, key: ApiKey, clock: Callable[[], float] = time.monotonic) -> None:
        self.name, self._concurrent = key.name, key.concurrent
        self.in_flight = 0
        self.requests = Bucket(key.requests_per_minute, clock)
        self.tokens = Bucket(key.tokens_per_minute, clock)

    def admit(self) -> None:
        """Count one more request. Raises Refused (429) where the key's bounds are reached.

        Tokens are taken when they are known, so a request is admitted while any are left, and those after it wait
        until what it took in excess is there again.
        """
        if self._concurrent and self.in_flight > self._concurrent:
            raise Refused(429, "Too many requests of this key at once.", "too_many_requests", retry_after_s=1)
        for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if wait := bucket.wait_s(1):
                message = f"This key may have {bucket.per_minute} {what} a minute; try again in {wait:.1f} s."
                raise Refused(429, message, "rate_limit_exceeded", retry_after_s=math.ceil(wait))
        self.requests.take(1)

    def headers(self) -> dict[str, str]:
        """OpenAI's rate-limit headers; none where the key has no bounds."""
        told: dict[str, str] = {}
        for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket.per_minute:
                level = bucket.level()
                told |= {
                    f"x-ratelimit-limit-{what}": str(bucket.per_minute),
                    f"x-ratelimit-remaining-{what}": str(max(0, int(level))),
                    f"x-ratelimit-reset-{what}": f"{bucket.wait_s(bucket.per_minute):.3f}s",
                }
        return told


class Accounts:
    """All holders of keys. Keys are looked up by their SHA-256, so how long it takes tells nothing of them."""

    def __init__(self, own: str, keys: Iterable[ApiKey] = ()) -> None:
        """`own`: the server's own key, without bounds."""
        self._by_digest = {key.digest: Account(key) for key in (ApiKey(name=OWNER, key=own), *keys)}

    def find(self, authorization: str) -> Account | None:
        """Whose `Authorization` header this is."""
        scheme, _space, key = authorization.partition(" ")
        digest = hashlib.sha256(key.encode()).hexdigest()
        return self._by_digest.get(digest) if scheme.lower() == "bearer" else None

    def names(self) -> list[str]:
        return [account.name for account in self._by_digest.values()]
