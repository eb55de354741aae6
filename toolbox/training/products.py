"""Causal attention by matrix products, for processors; `attention.py` calls it in every layer.

torch's own kernel took a third of a step's CPU time in bfloat16, most of it going backward, though its arithmetic is a
few percent of a step's: products of blocks run as fast as the model's linears do. Only queries, keys and values are
kept for the backward pass; probabilities are computed again, as in arXiv:2205.14135.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from toolbox.training.attention import Spans

BLOCK = 128
"""Queries at once: keys that none of them may see are not looked at."""


def by_products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, within: "Spans", scaling: float | None
) -> torch.Tensor:
    """An `attention.Kernel`."""
    bounds = within.queries.tolist(), within.keys.tolist()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    seen: torch.Tensor = CausalAttention.apply(query, key, value, bounds, scale)  # type: ignore[no-untyped-call]
    return seen


class CausalAttention(torch.autograd.Function):
    """softmax(scaling · q kᵀ) v within spans, whose last query sees all keys of the span, the one before all but one…

    `query` [queries, heads, head_dim]; `key`, `value` [keys, key_heads, head_dim], of which none is repeated for the
    several heads that share it; `bounds`: where spans begin and end, in queries and in keys. Returns as `query`.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Any, scaling: float
    ) -> torch.Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for queries, keys in _blocks(*bounds):
            likely = _likely(_grouped(query[queries], key) * scaling, key[keys], queries)
            out[queries] = _ungrouped(likely @ value[keys].transpose(0, 1), out[queries])
        ctx.save_for_backward(query, key, value)
        ctx.bounds, ctx.scaling = bounds, scaling
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """As arXiv:2205.14135, appendix B.2, a block of queries at a time."""
        query, key, value = ctx.saved_tensors
        to_query = torch.empty_like(query, memory_format=torch.contiguous_format)
        to_key, to_value = (torch.zeros_like(s, memory_format=torch.contiguous_format) for s in (key, value))
        for queries, keys in _blocks(*ctx.bounds):
            asked, wanted = _grouped(query[queries], key) * ctx.scaling, _grouped(gradient[queries], key)
            likely = _likely(asked, key[keys], queries)
            to_value[keys] += (likely.mT @ wanted).transpose(0, 1)
            to_scores = torch._softmax_backward_data(wanted @ value[keys].permute(1, 2, 0), likely, -1, likely.dtype)
            to_query[queries] = _ungrouped(to_scores @ key[keys].transpose(0, 1), to_query[queries]).mul_(ctx.scaling)
            to_key[keys] += (to_scores.mT @ asked).transpose(0, 1)
        return to_query, to_key, to_value, None, None


def _blocks(queries: Sequence[int], keys: Sequence[int]) -> Iterator[tuple[slice, slice]]:
    """Places of some queries of a span, and of all keys that the last of them sees."""
    for begin, end, first, last in zip(queries, queries[1:], keys, keys[1:], strict=False):
        for start in range(begin, end, BLOCK):
            stop = min(start + BLOCK, end)
            yield slice(start, stop), slice(first, last - (end - stop))


def _grouped(states: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """[tokens, heads, head_dim] as [key_heads, heads of each · tokens, head_dim]."""
    return states.unflatten(1, (key.shape[1], -1)).permute(1, 2, 0, 3).flatten(1, 2)


def _ungrouped(states: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The inverse of `_grouped`, in the shape of `like`."""
    return states.unflatten(1, (-1, like.shape[0])).permute(2, 0, 1, 3).flatten(1, 2)


def _likely(queries: torch.Tensor, key: torch.Tensor, places: slice) -> torch.Tensor:
    """softmax(q kᵀ), [key_heads, heads of each · tokens, keys]; 0 where a key is not seen."""
    tokens = places.stop - places.start
    scores = queries @ key.permute(1, 2, 0)
    hidden = torch.ones(tokens, tokens, dtype=torch.bool).triu_(1)
    scores.unflatten(1, (-1, tokens))[..., -tokens:].masked_fill_(hidden, -torch.inf)
    return scores.softmax(-1)
