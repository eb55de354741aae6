"""A row: one answer while it is written, and what is told of it to whoever asked."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import msgspec

from toolbox.serving.batching.pool import Region
from toolbox.serving.batching.sampling import Chosen, Settings
from toolbox.serving.batching.texts import Text

if TYPE_CHECKING:
    from toolbox.serving.batching.guided import Guide

Reason = Literal["stop", "length"]


class Told(msgspec.Struct, kw_only=True, frozen=True):
    """News of a row. The last has a reason, or a failure."""

    text: str = ""
    chosen: list[Chosen] = []
    reason: Reason | None = None
    failure: str = ""


class Row:
    """A prompt's token ids, and those written after it."""

    def __init__(
        self, ids: list[int], settings: Settings, *, ends: list[int], text: Text, tell: Callable[["Row", Told], None],
        adapter: str = "", number: int = 0, after: "Row | None" = None, guide: "Guide | None" = None,
    ) -> None:  # fmt: skip
        """`ends`: tokens that end the answer. `number`: of several answers to one prompt, whose first is `after`.

        `guide`: what the answer is held to, at its beginning.
        """
        self.ids, self.prompt = list(ids), len(ids)
        self.settings, self.ends, self.adapter, self.number = settings, frozenset(ends), adapter, number
        self.draws, self.guide = settings.draws(number), guide
        self.cancelled = False
        """Set by whoever asked, from any thread, once nobody waits any more."""
        self.finished = False
        self.region: Region | None = None
        self.after = after
        self.shared = 0
        """Tokens of the prompt whose keys and values were there already."""
        self._text, self._tell = text, tell

    @property
    def written(self) -> list[int]:
        return self.ids[self.prompt :]

    @property
    def count(self) -> int:
        """Tokens written."""
        return len(self.ids) - self.prompt

    @property
    def need(self) -> int:
        """Places in the pool: the last token's keys are never needed."""
        return self.prompt + self.settings.max_tokens - 1

    @property
    def begun(self) -> bool:
        """Whether the prompt has been read."""
        return len(self.ids) > self.prompt or self.finished

    def take(self, chosen: Chosen) -> None:
        """Write a token, and tell what it makes certain."""
        self.ids.append(chosen.token)
        if chosen.token in self.ends and self.count > self.settings.min_tokens:
            return self._finish(self._text.rest(), chosen, "stop")
        if self.guide and not self.guide.take(chosen.token):
            return self.fail("The answer can't be held to its schema any further.")
        text = self._text.push(chosen.token)
        if self._text.stopped:
            return self._finish(text, chosen, "stop")
        if self.guide and self.guide.over:
            return self._finish(text + self._text.rest(), chosen, "stop")
        if self.count >= self.settings.max_tokens:
            text += self._text.rest()
            return self._finish(text, chosen, "stop" if self._text.stopped else "length")
        self._tell(self, Told(text=text, chosen=[chosen]))

    def fail(self, why: str) -> None:
        """Tell that nothing more will come."""
        self.finished = True
        self._tell(self, Told(failure=why))

    def _finish(self, text: str, chosen: Chosen, reason: Reason) -> None:
        self.finished = True
        self._tell(self, Told(text=text, chosen=[chosen], reason=reason))
