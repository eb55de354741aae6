"""Rows to token ids, chunk by chunk, in several processes where there are many (`finetune` on much data)."""

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from toolbox.datasets import Row
from toolbox.training import store
from toolbox.training.stages import Stage
from toolbox.training.store import Packed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Chunk(msgspec.Struct, frozen=True):
    """Rows of one data set that are taken equally often; 0: they are held out."""

    dataset: str
    rows: list[Row]
    repeats: int


class Made(msgspec.Struct, frozen=True):
    """What a chunk became: its items, and the counts of `rows.Encoded`."""

    packed: Packed
    cut: int
    dropped: int
    split: int
    written_out: int


@dataclass(frozen=True)
class Encoder:
    """Encodes chunks for a stage."""

    stage: Stage
    tokenizer: "PreTrainedTokenizerBase"
    max_length: int

    def __call__(self, chunk: Chunk) -> Made:
        made = self.stage.encode(chunk.dataset, chunk.rows, self.tokenizer, self.max_length)
        packed = store.pack(made.samples, self.stage.item)
        return Made(packed, made.cut, made.dropped, made.split, made.written_out)


def ordered(chunks: Iterable[Chunk], encode: Encoder, workers: int) -> Iterator[tuple[Chunk, Made]]:
    """Each chunk with what it became, in their order; no more than two a worker are held.

    Workers are forks, so only Linux has them: chat templates keep a state while they render, so threads can't share
    one.
    """
    if workers == 1 or sys.platform != "linux":
        yield from ((chunk, encode(chunk)) for chunk in chunks)
        return
    waiting: deque[tuple[Chunk, Future[Made]]] = deque()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _begin, (encode, os.getpid())) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_encode, chunk)))
                if len(waiting) == 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            yield from ((chunk, future.result()) for chunk, future in waiting)
        finally:
            pool.shutdown(cancel_futures=True)


_inherited: list[Encoder] = []


def _encode(chunk: Chunk) -> Made:
    return _inherited[0](chunk)


def _begin(encode: Encoder, parent: int) -> None:
    """Inherit the encoder, which no pipe has to carry, and end with the parent however that ends."""
    _inherited[:] = [encode]
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
