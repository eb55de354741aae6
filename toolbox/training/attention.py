"""Attention within each row of a flattened batch, without a mask; transformers knows it by the name ROWS."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

if TYPE_CHECKING:
    from transformers import PretrainedConfig

ROWS = "causal_within_rows"


def causal_within_rows(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    row_lengths: Sequence[int] = (),
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query, key and value [1, heads, tokens, head_dim], each row by itself: [1, tokens, heads, head_dim].

    `row_lengths` adds up to `tokens`; the model hands it through. One mask over the whole batch would make attention
    quadratic in the batch: steps were 1.3 to 2.5 times slower on a CPU, with rows of 100 to 2000 tokens.
    """
    lengths = list(row_lengths)
    rows = zip(*(states.split(lengths, dim=2) for states in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows], dim=1), None


def suits(config: "PretrainedConfig", longest: int) -> bool:
    """Whether plain causal attention is what the model has for rows of up to `longest` tokens in every layer."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention"])
    window = getattr(text, "sliding_window", None) if not getattr(text, "layer_types", None) else None
    return config._attn_implementation == "sdpa" and kinds == {"full_attention"} and (not window or window >= longest)


def _no_mask(*args: Any, **options: Any) -> None:
    """Rows are kept apart by their lengths alone."""


AttentionInterface.register(ROWS, causal_within_rows)
AttentionMaskInterface.register(ROWS, _no_mask)
