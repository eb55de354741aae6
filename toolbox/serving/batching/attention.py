"""Attention of rows of a flattened batch over their regions of the pool; transformers knows it by the name POOLED."""

from typing import Any

import msgspec
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from toolbox.serving.batching.pool import Pool
from toolbox.training.attention import MOST_HEAD_DIM, Spans, kernel_for

POOLED = "causal_over_pool"
BLOCK = 256
"""Queries at once, so that scores of a long prompt never take much memory."""


class StepLost(Exception):
    """A model that does not hand `step` through to its attention can't be batched."""


class Piece(msgspec.Struct, frozen=True):
    """A row's part of a batch: its tokens are the batch's `first` to `last`, and end the pool's `begin` to `end`."""

    first: int
    last: int
    begin: int
    end: int


class Step(msgspec.Struct, frozen=True, eq=False):
    """What attention has to know of a flattened batch. `places` [tokens]: where each token lies in the pool.

    What a batch has beyond these tokens is padding.
    """

    pool: Pool
    pieces: list[Piece]
    places: torch.Tensor
    spans: Spans | None
    """For a kernel that takes all pieces at once."""


def step(pool: Pool, pieces: list[Piece], device: torch.device) -> Step:
    places = [place for piece in pieces for place in range(piece.end - (piece.last - piece.first), piece.end)]
    return Step(pool, pieces, torch.tensor(places, device=device), _spans(pieces, device))


def _spans(pieces: list[Piece], device: torch.device) -> Spans | None:
    if device.type != "cuda":
        return None
    queries = [piece.last - piece.first for piece in pieces]
    keys = [piece.end - piece.begin for piece in pieces]
    places = torch.cat([torch.arange(piece.begin, piece.end) for piece in pieces])
    bounds = [torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32) for counts in (queries, keys)]
    return Spans(bounds[0], bounds[1], max(queries), max(keys), places.to(device))


def over_pool(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    step: Step | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query, key and value [1, heads, tokens, head_dim]: [1, tokens, heads, head_dim].

    `softcap`: Gemma 2's bound of the scores. `s_aux` [heads]: gpt-oss's sinks, a score of nothing. Raises StepLost.
    """
    if step is None or position_bias is not None:
        raise StepLost
    layer: Any = module.layer_idx
    size, tokens = query.shape[2], len(step.places)
    q, k, v = (states[0, :, :tokens].transpose(0, 1) for states in (query, key, value))
    keys, values = step.pool.put(layer, step.places, k, v)
    rules = Rules(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap, s_aux)
    if step.spans and rules.plain and q.shape[-1] == v.shape[-1] <= MOST_HEAD_DIM:
        kernel, gathered = kernel_for("cuda", v.dtype), step.spans.gathered
        if kernel and gathered is not None:
            k, v = keys.index_select(0, gathered), values.index_select(0, gathered)
            seen = kernel(q.to(v.dtype).contiguous(), k, v, step.spans, rules.scaling)
            return torch.nn.functional.pad(seen, (0, 0, 0, 0, 0, size - tokens))[None], None
    out = values.new_zeros(size, q.shape[1], values.shape[-1])
    for piece in step.pieces:
        _attend(piece, q[piece.first : piece.last], keys, values, rules, out[piece.first : piece.last])
    return out[None], None


class Rules(msgspec.Struct, frozen=True, eq=False):
    """How scores are made, and which are hidden."""

    scaling: float
    window: int | None
    softcap: float | None
    sinks: torch.Tensor | None

    @property
    def plain(self) -> bool:
        return not (self.window or self.softcap or self.sinks is not None)


def _attend(
    piece: Piece, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, rules: Rules, out: torch.Tensor
) -> None:
    """Attention of a piece's query [tokens, heads, head_dim], into `out`."""
    if rules.plain and len(query) == 1:
        out.copy_(_one(query, keys[piece.begin : piece.end], values[piece.begin : piece.end], rules.scaling))
        return
    for first in range(0, len(query), BLOCK):
        asked = query[first : first + BLOCK]
        end = piece.end - (len(query) - first - len(asked))
        begin = max(piece.begin, end - len(asked) + 1 - rules.window) if rules.window else piece.begin
        out[first : first + BLOCK] = _seen(asked, keys[begin:end], values[begin:end], rules)


def _one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """A single token's query [1, heads, head_dim]: heads that share a key are the queries of one head."""
    grouped = query.view(1, key.shape[1], -1, query.shape[-1])
    seen = scaled_dot_product_attention(grouped, key.transpose(0, 1)[None], value.transpose(0, 1)[None], scale=scaling)
    return seen.reshape(1, query.shape[1], -1)


def _seen(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rules: Rules) -> torch.Tensor:
    """Attention of query [tokens, heads, head_dim], the last of which sees all keys, the one before all but one…"""
    tokens, count, shared = len(query), len(key), key.shape[1]
    grouped = query.unflatten(1, (shared, -1)).permute(1, 2, 0, 3)  # [key heads, heads of each, tokens, head_dim]
    scores = (grouped.flatten(1, 2) @ key.permute(1, 2, 0)).unflatten(1, (-1, tokens)) * rules.scaling
    if rules.softcap:
        scores = rules.softcap * torch.tanh(scores / rules.softcap)
    places = torch.arange(count, device=key.device)
    ages = places[count - tokens :, None] - places
    scores = scores.masked_fill((ages < 0) | (ages >= (rules.window or count)), -torch.inf)
    if rules.sinks is not None:
        sinks = rules.sinks.view(shared, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks.to(scores.dtype)], -1)
    likely = scores.softmax(-1, dtype=torch.float32).to(value.dtype)[..., :count]
    seen = (likely.flatten(1, 2) @ value.transpose(0, 1)).unflatten(1, (-1, tokens))
    return seen.permute(2, 0, 1, 3).flatten(1, 2)


def _no_mask(*args: Any, **options: Any) -> None:
    """Rows are kept apart by their regions alone."""


AttentionInterface.register(POOLED, over_pool)
AttentionMaskInterface.register(POOLED, _no_mask)
