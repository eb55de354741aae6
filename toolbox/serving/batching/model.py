"""The model as the scheduler sees it: a step's tokens go through it as one flattened batch over the pool."""

from collections.abc import Sequence
from typing import Any

import torch

from toolbox.serving.batching import attention
from toolbox.serving.batching.adapters import Adapters
from toolbox.serving.batching.pool import Pool
from toolbox.serving.batching.rows import Row
from toolbox.training.attention import attend_by
from toolbox.training.layouts import takes_flattened

SIZES = (*range(1, 17), 24, 32, 48, *range(64, 2049, 64))
"""Tokens a flattened batch is padded to: for each new size, a processor's kernels are made anew and kept."""
SAME_FOR_ALL = {"default", "linear", "llama3", "yarn", "proportional"}
"""Kinds of rotary embeddings that no neighbour's length changes, as "dynamic" and "longrope" are."""
ALIKE = {"full_attention", "sliding_attention"}


class Flattened:
    """A `scheduler.Model`. All tokens of a step go through the model as one sequence, without padding or masks."""

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        attend_by(adapters.base, attention.POOLED)

    def logits(self, pool: Pool, parts: Sequence[tuple[Row, list[int]]]) -> list[torch.Tensor | None]:
        found: list[torch.Tensor | None] = []
        for group in self._adapters.groups(parts):
            found += self._group(pool, group)
        return found

    def _group(self, pool: Pool, parts: Sequence[tuple[Row, list[int]]]) -> list[torch.Tensor | None]:
        ids: list[int] = []
        positions: list[int] = []
        pieces, wanted = [], []
        for row, tokens in parts:
            assert row.region is not None
            known, first = len(row.region.ids), len(ids)
            end = row.region.begin + known + len(tokens)
            pieces.append(attention.Piece(first, first + len(tokens), row.region.begin, end))
            ids += tokens
            positions += range(known, known + len(tokens))
            wanted.append(len(ids) - 1 if known + len(tokens) == len(row.ids) else None)
        device = self._adapters.base.device
        step = attention.step(pool, pieces, device)
        padding = next((size for size in SIZES if size >= len(ids)), len(ids)) - len(ids)
        last = [place for place in wanted if place is not None]
        with self._adapters.over([(row.adapter, len(tokens)) for row, tokens in parts]):
            logits = self._adapters.base(
                input_ids=torch.tensor([ids + [0] * padding], device=device),
                position_ids=torch.tensor([positions + [0] * padding], device=device),
                use_cache=False, step=step, logits_to_keep=torch.tensor(last, dtype=torch.long, device=device),
            ).logits[0].float()  # fmt: skip
        rows = iter(logits)
        return [None if place is None else next(rows) for place in wanted]


def may_batch(base: Any) -> bool:
    """Whether flattening is worth the proof."""
    text = base.config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return (
        takes_flattened(base)
        and not base._is_stateful
        and not base.config.is_encoder_decoder
        and set(getattr(text, "layer_types", None) or ALIKE) <= ALIKE
        and {part.get("rope_type", "default") for part in kinds} <= SAME_FOR_ALL
    )
