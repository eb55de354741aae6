"""Rows one at a time, through transformers' own `generate`: for models whose memory can't be batched in a pool."""

from typing import Any

import torch

from toolbox.serving.batching.adapters import Adapters
from toolbox.serving.batching.pool import Pool
from toolbox.serving.batching.rows import Row
from toolbox.serving.batching.sampling import choose
from toolbox.serving.batching.scheduler import Scheduler

ALL = 1 << 62
"""More tokens than any row has."""
NEVER = -1
"""No token ends an answer for `generate`: the row says when."""


class OneByOne(Scheduler):
    """A Scheduler without a pool, whose turn is a whole answer."""

    def __init__(self, adapters: Adapters, *, waiting: int) -> None:
        super().__init__(None, Pool(0, 0), rows=1, waiting=waiting)
        self._adapters = adapters

    def turn(self) -> None:
        if not self._waiting:
            return
        row = self._next()
        if not row.cancelled:
            self._guarded([row], lambda: self._write(row))
        row.finished = True

    def _write(self, row: Row) -> None:
        def chosen(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.beat()
            (choice,) = choose(scores.float(), [row])
            if choice is None:
                row.fail("The model's logits are not numbers.")
            else:
                row.take(choice)
            forced = torch.full_like(scores, -torch.inf)
            forced[:, choice.token if choice else 0] = 0.0
            return forced

        def over(ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
            return torch.full((len(ids),), row.finished or row.cancelled, device=ids.device)

        base = self._adapters.base
        ids = torch.tensor([row.ids], device=base.device)
        with self._adapters.over([(row.adapter, ALL)]):
            base.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=row.settings.max_tokens,
                do_sample=False, num_beams=1, repetition_penalty=1.0, eos_token_id=NEVER, pad_token_id=0,
                logits_processor=[chosen], stopping_criteria=[over],
            )  # fmt: skip
