"""Which rows take part in the next step, and what becomes of them; one thread does all of it."""

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from toolbox.serving.batching.pool import Pool
from toolbox.serving.batching.rows import Row
from toolbox.serving.batching.sampling import choose
from toolbox.serving.log import log

STALL_S = 0.25
"""Prompts are read in pieces, so that rows being written wait about this long at most."""
LEAST_CHUNK, MOST_CHUNK = 64, 2048
FAILURES = 3
"""Failed steps in a row after which the engine gives itself up, to be started anew."""
WORTH_WAITING = 16
"""Tokens of a prompt that its first answer reads for the others."""


class QueueFull(Exception):
    """More rows wait than will be heard in any reasonable time."""


class Model(Protocol):
    """What steps are computed with."""

    def logits(self, pool: Pool, parts: Sequence[tuple[Row, list[int]]]) -> list[torch.Tensor | None]:
        """Of each row its next token's logits [vocabulary] in float32, None where its prompt has not been read whole.

        The tokens of each part follow what the row's region holds.
        """
        ...


class Scheduler:
    """Rows come in by `submit` from any thread, and are told of through their own `tell`."""

    def __init__(self, model: Model | None, pool: Pool, *, rows: int, waiting: int) -> None:
        """At most `rows` are written at once, and `waiting` more wait their turn."""
        self._model, self._pool, self._most, self._most_waiting = model, pool, rows, waiting
        self._waiting: deque[Row] = deque()
        self._active: list[Row] = []
        self._wake = threading.Condition()
        self._chunk = LEAST_CHUNK * 2
        self._token_s = 0.0
        """What a step without prompts took last."""
        self._failures = 0
        self.began: float | None = None
        """When the step began that is being computed (`time.monotonic`); None between steps."""

    @property
    def silent_s(self) -> float:
        """For how long the step has been computed that is under way; 0 between steps."""
        began = self.began
        return time.monotonic() - began if began else 0.0

    def submit(self, rows: Sequence[Row]) -> None:
        """Let `rows` be written. Raises QueueFull."""
        with self._wake:
            if len(self._waiting) + len(rows) > self._most_waiting + self._most:
                raise QueueFull
            self._waiting.extend(rows)
            self._wake.notify()

    def run(self) -> None:
        """Work for ever. Raises what a step raised, once steps have failed too often."""
        while True:
            with self._wake:
                while not (self._waiting or self._active):
                    self._wake.wait()
            self.turn()

    @torch.inference_mode()
    def turn(self) -> None:
        """One step: rows nobody waits for go, others come, all are taken a token or a piece of their prompt further."""
        self._drop([row for row in self._active if row.cancelled], keep=True)
        self._admit()
        parts = self._parts()
        if not parts:
            return
        began = time.monotonic()
        self._guarded([row for row, _ids in parts], lambda: self._step(parts))
        self._pace(sum(len(ids) for _row, ids in parts), len(parts), time.monotonic() - began)

    def beat(self) -> None:
        """Tell that work goes on."""
        self.began = time.monotonic()

    def _guarded(self, rows: Sequence[Row], work: Callable[[], None]) -> None:
        """Do `work`; where it fails, `rows` are told so. Raises what it raised, once that was too often."""
        self.beat()
        try:
            work()
            self._failures = 0
        except Exception as error:  # whatever a model raises, the others' requests are not to suffer for it
            self._failures += 1
            traceback.print_exc()
            log("step_failed", error=type(error).__name__, rows=len(rows), failures=self._failures)
            for row in rows:
                if not row.finished:
                    row.fail("The engine failed on this request.")
            self._drop([row for row in rows if row in self._active], keep=False)
            if self._failures >= FAILURES:
                raise
        finally:
            self.began = None

    def _step(self, parts: Sequence[tuple[Row, list[int]]]) -> None:
        assert self._model is not None
        logits = self._model.logits(self._pool, parts)
        for row, ids in parts:
            assert row.region is not None
            row.region.ids += ids
        wanted = [(row, scores) for (row, _ids), scores in zip(parts, logits, strict=True) if scores is not None]
        if wanted:
            rows = [row for row, _scores in wanted]
            for row, chosen in zip(rows, choose(torch.stack([scores for _row, scores in wanted]), rows), strict=True):
                if chosen:
                    row.take(chosen)
                else:
                    row.fail("The model's logits are not numbers.")
        self._drop([row for row, _ids in parts if row.finished], keep=True)

    def _drop(self, rows: Sequence[Row], keep: bool) -> None:
        for row in rows:
            self._active.remove(row)
            if row.region:
                self._pool.leave(row.region, keep)
                row.region = None
            row.finished = True

    def _admit(self) -> None:
        """Give regions to those that wait, in their order, while there is room."""
        while self._waiting and len(self._active) < self._most:
            row = self._waiting[0]
            if row.cancelled:
                row.finished = True
            elif row.after and not row.after.begun and row.prompt > WORTH_WAITING:
                return
            else:
                row.region = self._pool.take(row.ids, row.need, row.adapter)
                if row.region is None:
                    return
                row.shared = len(row.region.ids)
                self._active.append(row)
            self._next()

    def _next(self) -> Row:
        with self._wake:
            return self._waiting.popleft()

    def _parts(self) -> list[tuple[Row, list[int]]]:
        """The tokens of each row that this step computes, an adapter's rows side by side: all that are being written
        take one, and prompts share what a step may take."""
        left = self._chunk if any(row.count for row in self._active) else 4 * self._chunk  # nobody to keep waiting
        parts = []
        for row in self._active:
            assert row.region is not None
            unread = row.ids[len(row.region.ids) :] if row.count == 0 else row.ids[-1:]
            if row.count == 0:
                unread = unread[: max(0, left)]
                left -= len(unread)
            if unread:
                parts.append((row, unread))
        return sorted(parts, key=lambda part: part[0].adapter)

    def _pace(self, tokens: int, rows: int, seconds: float) -> None:
        """Let prompts have as many tokens a step as keep it about STALL_S long, or four times one without them."""
        if tokens == rows:
            self._token_s = seconds
        elif tokens >= self._chunk // 2:
            fitting = int(self._chunk * max(STALL_S, 4 * self._token_s) / max(seconds, 1e-3))
            self._chunk = min(max((self._chunk + fitting) // 2, LEAST_CHUNK), MOST_CHUNK)
