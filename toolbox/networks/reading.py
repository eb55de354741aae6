"""From a config.json to a `Network`: the text part here, the tower in vision.py."""

from collections import Counter
from typing import Any

import msgspec

from toolbox.networks import vision
from toolbox.networks.flavours import FLAVOURS, LLAMA, Flavour
from toolbox.networks.parts import WEIGHTS_OF_NORM, Attention, Experts, Layer, Linear, Mlp, Network
from toolbox.networks.values import Values

DROPOUT = ("resid_pdrop", "resid_dropout", "residual_dropout", "hidden_dropout", "dropout")
INNER = ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "d_ff")
DEEPEST = 4096
"""Layers that are looked at, as a file may say any number."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
SHARED = ("n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts")
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")


def read(config: dict[str, Any]) -> Network:
    """The network of a config.json, which may be anybody's: what can't be is taken as not said.

    An unknown `model_type` counts as Llama's kind. Of a file that says nothing the network has no layers.
    """
    outer = Values(config)
    text = outer.language()
    network = _text(text, outer)
    tower = vision.read(outer, network.hidden) if text is not outer else None
    return msgspec.structs.replace(network, vision=tower)


def llama_like(
    hidden: int, inner: int, layers: int, heads: int, kv_heads: int, head_dim: int, vocab: int, tied: bool
) -> Network:
    """A network of Llama's kind with these widths."""
    widths = {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "vocab_size": vocab, "tie_word_embeddings": tied,
    }  # fmt: skip
    return read({"model_type": "llama", **widths})


def _text(values: Values, outer: Values) -> Network:
    flavour = FLAVOURS.get(values.kind, LLAMA)
    hidden = values.number("hidden_size", "n_embd", "d_model", "dim", "n_embed")
    vocab = values.number("vocab_size", default=outer.number("vocab_size"))
    width = values.number("word_embed_proj_dim", default=hidden)
    tied = outer.flag("tie_word_embeddings", default=values.flag("tie_word_embeddings"))
    extra = _norm(flavour, hidden)
    if flavour.positions is not None:
        extra += hidden * (values.number("max_position_embeddings") + flavour.positions)
    if flavour.embedding_norm:
        extra += _norm(flavour, hidden)
    if width != hidden:
        extra += 2 * width * hidden - vocab * (hidden - width) * (1 if tied else 2)
    return Network(
        hidden=hidden,
        vocab=vocab,
        layers=tuple(_layers(values, flavour, hidden)),
        tied=tied,
        norm=flavour.norm,
        head_bias=_switch(values, flavour.head_bias),
        extra=extra,
        head_scaled=any(values.share(name, 0) for name in ("logit_scale", "logits_scaling")),
        rounds=flavour.rounds,
        flattens=flavour.flattens,
    )


def _layers(values: Values, flavour: Flavour, hidden: int) -> list[Layer]:
    """The kinds of layers, each with its number."""
    depth = values.number("num_hidden_layers", "n_layer", "num_layers", "n_layers")
    depth = depth or len(values.words("layers_block_type"))  # Nemotron-H's, which is its only word on it
    parallel = _parallel(values, flavour)
    norms = _norms(values, flavour, parallel)
    kinds: Counter[tuple[bool, int, int]] = Counter()
    for index in range(min(depth, DEEPEST)):
        kinds[_is_sparse(values, flavour, index), _window(values, index), _inner(values, index)] += 1
    found = []
    for (sparse, window, inner), count in kinds.items():
        dense = _mlp(values, flavour, hidden, inner)
        found.append(
            Layer(
                count=count,
                attention=_attention(values, flavour, hidden, window),
                mlp=None if sparse else dense,
                experts=_experts(values, flavour, hidden) if sparse else None,
                norms=norms,
                norm=flavour.norm,
                dropout=any(values.share(name, 0) for name in DROPOUT),
                parallel=parallel,
                hidden=hidden,
            )
        )
    return found


def _parallel(values: Values, flavour: Flavour) -> bool:
    if values.kind == "falcon":
        return values.flag("new_decoder_architecture") or values.flag("parallel_attn")
    return _switch(values, flavour.parallel)


def _norms(values: Values, flavour: Flavour, parallel: bool) -> int:
    if values.kind == "falcon":
        two = values.flag("new_decoder_architecture") and values.number("num_ln_in_parallel_attn", default=2) == 2
        return 2 if two or not parallel else 1
    return 1 if values.kind == "stablelm" and parallel else flavour.norms


def _norm(flavour: Flavour, width: int) -> int:
    return WEIGHTS_OF_NORM[flavour.norm] * width


def _switch(values: Values, said: bool | str) -> bool:
    return values.flag(said) if isinstance(said, str) else said


def _window(values: Values, index: int) -> int:
    """Of layer `index`, as `layer_types` says, or older fields."""
    window = values.number("sliding_window")
    kinds = values.words("layer_types")
    if kinds:
        return window if index < len(kinds) and kinds[index] == "sliding_attention" else 0
    if pattern := values.number("sliding_window_pattern", "_sliding_window_pattern"):
        return window if (index + 1) % pattern else 0
    if values.kind == "gemma2":
        return 0 if index % 2 else window
    if not values.flag("use_sliding_window", default=True):
        return 0
    return window if index >= values.number("max_window_layers") or not values.flag("use_sliding_window") else 0


def _inner(values: Values, index: int) -> int:
    """The MLP's width in layer `index`."""
    hidden = values.number("hidden_size", "n_embd", "d_model")
    each = values.numbers("intermediate_size")
    if index < len(each):
        return each[index]
    if values.kind == "llama4_text":
        return values.number("intermediate_size_mlp")
    if values.kind == "mpt":
        return values.number("expansion_ratio", default=4) * hidden
    return values.number(*INNER) or 4 * hidden


def _attention(values: Values, flavour: Flavour, hidden: int, window: int) -> Attention:
    if values.number("kv_lora_rank"):
        return _latent(values, flavour, hidden)
    heads = max(1, values.number("num_attention_heads", "n_head", "n_heads"))
    kv_heads = _kv_heads(values, heads)
    head_dim = values.number("head_dim") or hidden // heads
    queries, keys = heads * head_dim, kv_heads * head_dim
    qkv_bias, o_bias = _switch(values, flavour.qkv_bias), _switch(values, flavour.o_bias)
    if flavour.qkv:
        makers: tuple[Linear, ...] = (Linear(flavour.qkv, hidden, queries + 2 * keys, qkv_bias),)
    else:
        makers = tuple(
            Linear(name, hidden, width, qkv_bias)
            for name, width in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys))
        )
    norm = flavour.qk_norm if not flavour.qk_norm_if or values.flag(flavour.qk_norm_if) else ""
    if values.kind == "stablelm" and values.flag("qk_layernorm"):
        norm = "width"
    share = values.share("partial_rotary_factor", _nested_share(values))
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=head_dim,
        linears=(*makers, Linear(flavour.o, queries, hidden, o_bias)),
        rotary_dim=int(share * head_dim) if flavour.rotary and not values.flag("alibi") else 0,
        broadcasts=values.kind == "falcon" and kv_heads == 1 < heads,
        window=window,
        norm=norm,
        extra=_qk_norm(flavour, norm, head_dim, queries, keys) + (heads if values.kind == "gpt_oss" else 0),
    )


def _nested_share(values: Values) -> float:
    share = values.mapping("rope_parameters").get("partial_rotary_factor", values.get("rotary_pct"))
    return float(share) if type(share) in (int, float) and 0 < share <= 1 else 1.0


def _kv_heads(values: Values, heads: int) -> int:
    if values.kind == "falcon":
        if values.flag("new_decoder_architecture"):
            return values.number("num_kv_heads") or heads
        return 1 if values.flag("multi_query") else heads
    if values.kind == "gpt_bigcode":
        return 1 if values.flag("multi_query", default=True) else heads
    return values.number("num_key_value_heads", "num_kv_heads") or heads


def _qk_norm(flavour: Flavour, norm: str, head_dim: int, queries: int, keys: int) -> int:
    each = 2 if flavour.norm == "layer" and norm == "head" else 1
    return {"": 0, "head": each * 2 * head_dim, "width": queries + keys}[norm]


def _latent(values: Values, flavour: Flavour, hidden: int) -> Attention:
    """DeepSeek's multi-head latent attention (arXiv:2405.04434, section 2.1)."""
    heads, q_rank, kv_rank = (values.number(name) for name in ("num_attention_heads", "q_lora_rank", "kv_lora_rank"))
    rope, nope, value = (values.number(name) for name in ("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"))
    bias = values.flag("attention_bias")
    queries = heads * (nope + rope)
    makers: tuple[Linear, ...]
    if q_rank:
        makers = (Linear("q_a_proj", hidden, q_rank, bias), Linear("q_b_proj", q_rank, queries))
    else:
        makers = (Linear("q_proj", hidden, queries),)
    return Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=nope + rope,
        value_dim=value,
        rotary_dim=rope,
        q_rank=q_rank,
        kv_rank=kv_rank,
        linears=(
            *makers,
            Linear("kv_a_proj_with_mqa", hidden, kv_rank + rope, bias),
            Linear("kv_b_proj", kv_rank, heads * (nope + value)),
            Linear("o_proj", heads * value, hidden, bias),
        ),
        extra=q_rank + kv_rank,
    )


def _mlp(values: Values, flavour: Flavour, hidden: int, inner: int) -> Mlp:
    bias = _switch(values, flavour.mlp_bias)
    if flavour.gated and flavour.gate_up:
        makers: tuple[Linear, ...] = (Linear(flavour.gate_up, hidden, 2 * inner, bias),)
    elif flavour.gated:
        makers = (Linear("gate_proj", hidden, inner, bias), Linear(flavour.up, hidden, inner, bias))
    else:
        makers = (Linear(flavour.up, hidden, inner, bias),)
    return Mlp(
        inner=inner,
        gated=flavour.gated,
        activation=_activation(values),
        linears=(*makers, Linear(flavour.down, inner, hidden, bias)),
    )


def _activation(values: Values) -> str:
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    return values.text(*names, default="silu")


def _is_sparse(values: Values, flavour: Flavour, index: int) -> bool:
    """Whether layer `index` has experts in its MLP's place."""
    if not values.number(*EXPERTS):
        return False
    if listed := values.numbers("moe_layers"):
        return index in listed
    if index in values.numbers("mlp_only_layers") or index < values.number("first_k_dense_replace"):
        return False
    if flavour.interleaved:
        step = values.number("interleave_moe_layer_step", default=1)
        return bool(step) and (index + 1) % step == 0
    if kinds := values.words("mlp_layer_types"):
        return index < len(kinds) and kinds[index] != "dense"
    first, last = values.number("moe_layer_start_index"), values.get("moe_layer_end_index")
    if index < first or (type(last) is int and 0 <= last < index):
        return False
    step = values.number("decoder_sparse_step", "moe_layer_interval", default=1) or 1
    return (index + 1) % step == 0


def _experts(values: Values, flavour: Flavour, hidden: int) -> Experts:
    count = values.number(*EXPERTS)
    inner = values.number("moe_intermediate_size", "expert_ffn_hidden_size") or values.number(*INNER)
    gpt_oss = values.kind == "gpt_oss"
    return Experts(
        count=count,
        active=min(count, values.number(*ACTIVE, default=1)),
        inner=inner,
        gated=flavour.gated,
        activation=_activation(values),
        bias=gpt_oss,
        shared=_shared(values, flavour, hidden, inner),
        extra=count * (hidden + gpt_oss) + (hidden if values.kind == "qwen2_moe" else 0),
        hidden=hidden,
    )


def _shared(values: Values, flavour: Flavour, hidden: int, inner: int) -> Mlp | None:
    """The MLP that all tokens go through beside their experts."""
    width = values.number("shared_expert_intermediate_size", "shared_intermediate_size")
    if not width and values.kind == "llama4_text":
        width = inner
    if not width:
        width = inner * values.number(*SHARED)
    return _mlp(values, flavour, hidden, width) if width else None
