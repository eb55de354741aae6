"""Tokens as text while they are written: whole characters only, and nothing of a stop string."""

from typing import Any

UNFINISHED = "\ufffd"
"""What a decoder makes of a character's first bytes."""
MOST_UNFINISHED = 3
"""Bytes of a character that lacks its last; whatever was before them will never be one."""


class Text:
    """The text of a row's tokens, piece by piece. `stopped`: a stop string came, and the text ends before it."""

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = (), skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._stops, self._skip = tokenizer, stops, skip_special_tokens
        self._ids: list[int] = []
        self._begin = self._told = 0
        """Tokens from `_begin` are decoded again with each new one; the text of those before `_told` has been given."""
        self._ahead = 0
        """Characters given beyond those: of tokens that end within one."""
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        known, whole = self._decode(self._begin, self._told), self._decode(self._begin, len(self._ids))
        held = 0
        while held < MOST_UNFINISHED and whole[: len(whole) - held].endswith(UNFINISHED):
            held += 1
        text = whole[len(known) + self._ahead : len(whole) - held]
        if held:
            self._ahead += len(text)
        elif len(whole) > len(known):
            self._begin, self._told, self._ahead = self._told, len(self._ids), 0
        return self._past_stops(text)

    def rest(self) -> str:
        """What was held back, once no token follows."""
        if self.stopped:
            return ""
        known, whole = self._decode(self._begin, self._told), self._decode(self._begin, len(self._ids))
        text = self._past_stops(whole[len(known) + self._ahead :])
        self._told, self._ahead = len(self._ids), 0
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _decode(self, begin: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[begin:end], skip_special_tokens=self._skip)) if end > begin else ""

    def _past_stops(self, text: str) -> str:
        if not self._stops:
            return text
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            self.stopped = True
            return self._held[: min(found)]
        kept = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        certain, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return certain


def _overlap(text: str, stop: str) -> int:
    """How much of the end of `text` begins `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
