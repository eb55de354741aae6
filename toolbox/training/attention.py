"""Attention within each tree of a flattened batch, without a mask over it; transformers knows it by the name TREES."""

from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from toolbox.training.products import by_products

if TYPE_CHECKING:
    from transformers import PretrainedConfig

TREES = "causal_within_trees"
Nodes = tuple[tuple[int, int], ...]
"""(The parent's place in the tuple or -1, tokens) of each node of a batch's trees; a row alone is a root."""
Range = tuple[int, int]
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "Spans", float | None], torch.Tensor]
"""Causal attention of query, key and value [tokens, heads, head_dim] within spans, ends aligned: as query."""
MOST_HEAD_DIM = 256
"""Of the flash kernels."""
AT_ONCE = 512
"""Queries of a branch; with all of a long one, half of what is computed would be masked."""


class NodesLost(Exception):
    """A model that does not hand `nodes` through to its attention can't keep rows of a flattened batch apart."""


def causal_within_trees(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    nodes: Nodes = (),
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of query, key and value [1, heads, tokens, head_dim], within each tree: [1, tokens, heads, head_dim].

    A node sees its ancestors and itself. The tokens of `nodes` add up to `tokens`; the model hands them through. One
    mask over the whole batch would make attention quadratic in the batch: steps were 1.3 to 2.5 times slower on a CPU,
    with rows of 100 to 2000 tokens. Raises NodesLost.
    """
    if not nodes:
        raise NodesLost
    kernel = kernel_for(value.device.type, value.dtype)
    if kernel and value.shape[-1] == query.shape[-1] <= MOST_HEAD_DIM and not options.get("dropout"):
        return _at_once(kernel, query, key, value, nodes, options.get("scaling")), None
    seen = []
    for *before, (begin, end) in paths(nodes):
        step = AT_ONCE if before else max(1, end - begin)
        for first in range(begin, end, step):
            last = min(first + step, end)
            k, v = (_taken(states, [*before, (begin, last)]) for states in (key, value))
            q, mask = query[:, :, first:last], None
            if before:
                mask = torch.ones(last - first, k.shape[2], dtype=torch.bool, device=k.device)
                mask = mask.tril(k.shape[2] - (last - first))[None, None]
            seen.append(sdpa_attention_forward(module, q, k, v, mask, **options)[0])
    return torch.cat(seen, dim=1), None


def _taken(states: torch.Tensor, ranges: list[Range]) -> torch.Tensor:
    """Those tokens of states [1, heads, tokens, head_dim]; without a copy where it is a single range."""
    parts = [states[:, :, begin:end] for begin, end in ranges]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def paths(nodes: Nodes) -> list[list[Range]]:
    """Of each node: where its ancestors, from the root, and itself begin and end in the batch."""
    found: list[list[Range]] = []
    end = 0
    for parent, tokens in nodes:
        begin, end = end, end + tokens
        found.append([*(found[parent] if parent >= 0 else []), (begin, end)])
    return found


class Spans(msgspec.Struct, frozen=True):
    """What a kernel for rows of many lengths has to know of a batch: a span is a node with the keys of its path.

    `queries` and `keys` [spans + 1]: where each span begins and ends, int32. `gathered` [keys]: the place of each key
    in the batch, since a node is seen from several branches; None where every key is there once, in order.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    longest_query: int
    longest_key: int
    gathered: torch.Tensor | None


@lru_cache(maxsize=4)  # the layers of a model ask in turn for the same, and making it waits for the GPU
def spans(nodes: Nodes, device: torch.device) -> Spans:
    """A span for each node."""
    seen = [[place for begin, end in path for place in range(begin, end)] for path in paths(nodes)]
    queries, keys = [tokens for _parent, tokens in nodes], [len(places) for places in seen]
    gathered = None if queries == keys else torch.tensor([place for places in seen for place in places], device=device)
    return Spans(_bounds(queries, device), _bounds(keys, device), max(queries), max(keys), gathered)


def _bounds(lengths: list[int], device: torch.device) -> torch.Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _at_once(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    nodes: Nodes,
    scaling: float | None,
) -> torch.Tensor:
    """All spans in one call. Under autocast, rotary embeddings leave query and key in float32: they follow value."""
    within = spans(nodes, value.device)
    q, k, v = (states[0].transpose(0, 1).to(value.dtype) for states in (query, key, value))
    if within.gathered is not None:
        k, v = (states.index_select(0, within.gathered) for states in (k, v))
    return kernel(q, k, v, within, scaling)[None]


@cache
def kernel_for(kind: str, dtype: torch.dtype) -> Kernel | None:
    """The kernel for rows of many lengths that this kind of device has for `dtype`; None: each row by itself.

    flash-attn where it is installed, else torch's own; both want 16 bits and an Ampere GPU or a newer one. On a
    processor, products of matrices.
    """
    if kind == "cpu":
        return by_products
    if kind != "cuda" or dtype not in (torch.float16, torch.bfloat16) or torch.cuda.get_device_capability() < (8, 0):
        return None
    if find_spec("flash_attn"):
        return _flash_attn
    return _torch_varlen if find_spec("torch.nn.attention.varlen") else None


def _flash_attn(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, within: Spans, scaling: float | None
) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    bounds = (within.queries, within.keys, within.longest_query, within.longest_key)
    seen: torch.Tensor = flash_attn_varlen_func(query, key, value, *bounds, softmax_scale=scaling, causal=True)
    return seen


def _torch_varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, within: Spans, scaling: float | None
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds = (within.queries, within.keys, within.longest_query, within.longest_key)
    seen = varlen_attn(query, key, value, *bounds, scale=scaling, window_size=(-1, 0), enable_gqa=True)
    assert isinstance(seen, torch.Tensor)  # a pair only where more is asked for
    return seen


def suits(config: "PretrainedConfig", longest: int) -> bool:
    """Whether plain causal attention is what the model has for rows of up to `longest` tokens in every layer.

    A window or chunk that takes in the whole row changes nothing.
    """
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["full_attention", "sliding_attention"])
    spans = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    reach = [getattr(text, spans[kind], None) or longest for kind in kinds & set(spans)]
    plain = kinds <= {"full_attention", *spans}
    return config._attn_implementation == "sdpa" and plain and all(tokens >= longest for tokens in reach)


def attend_by(model: Any, implementation: str) -> None:
    """Let the language model within `model` attend by `implementation`; towers keep what they have."""
    config, text = model.config, model.config.get_text_config()
    parts = {name: implementation for name in config.sub_configs if getattr(config, name, None) is text}
    model.set_attn_implementation({"": implementation, **parts})


def _no_mask(*args: Any, **options: Any) -> None:
    """Trees are kept apart by their lengths alone."""


AttentionInterface.register(TREES, causal_within_trees)
AttentionMaskInterface.register(TREES, _no_mask)
