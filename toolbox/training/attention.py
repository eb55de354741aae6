"""Attention within each tree of a flattened batch, without a mask over it; transformers knows it by the name TREES."""

from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TREES = "causal_within_trees"
Shape = tuple[int, ...]
"""A tree's tokens: of its trunk, then of each branch; a row alone is (tokens, 0)."""


def causal_within_trees(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    trees: tuple[Shape, ...] = (),
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query, key and value [1, heads, tokens, head_dim], within each tree: [1, tokens, heads, head_dim].

    A branch sees the trunk and itself. The numbers in `trees` add up to `tokens`; the model hands them through. One
    mask over the whole batch would make attention quadratic in the batch: steps were 1.3 to 2.5 times slower on a CPU,
    with rows of 100 to 2000 tokens.
    """
    sizes = [sum(tree) for tree in trees]
    parts = zip(*(states.split(sizes, dim=2) for states in (query, key, value)), trees, strict=True)
    return torch.cat([seen for q, k, v, tree in parts for seen in _tree(module, q, k, v, tree, options)], dim=1), None


def _tree(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tree: Shape, options: Any
) -> list[torch.Tensor]:
    """The trunk goes with the first branch, through the causal kernel; further ones have a mask as long as they are."""
    trunk, first, *others = tree
    begin = trunk + first
    q, k, v = (states[:, :, :begin] for states in (query, key, value))
    seen = [sdpa_attention_forward(module, q, k, v, None, **options)[0]]
    for length in others:
        if length:
            q = query[:, :, begin : begin + length]
            k, v = (
                torch.cat([states[:, :, :trunk], states[:, :, begin : begin + length]], 2) for states in (key, value)
            )
            mask = torch.ones(length, trunk + length, dtype=torch.bool, device=q.device).tril(trunk)
            seen.append(sdpa_attention_forward(module, q, k, v, mask[None, None], **options)[0])
        begin += length
    return seen


def suits(config: "PretrainedConfig", longest: int) -> bool:
    """Whether plain causal attention is what the model has for rows of up to `longest` tokens in every layer."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if not getattr(text, "layer_types", None) else None
    return config._attn_implementation == "sdpa" and kinds == {"full_attention"} and (not window or window >= longest)


def _no_mask(*args: Any, **options: Any) -> None:
    """Trees are kept apart by their lengths alone."""


AttentionInterface.register(TREES, causal_within_trees)
AttentionMaskInterface.register(TREES, _no_mask)
