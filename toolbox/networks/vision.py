"""Vision towers: from the `vision_config` of a multimodal config.json to a `Vision`."""

from collections.abc import Callable

from toolbox.networks.parts import Attention, Layer, Linear, Mlp, Norm, Vision
from toolbox.networks.values import Values


def read(outer: Values, text_width: int) -> Vision | None:
    """The tower of a multimodal model whose language model is `text_width` wide; None where none is told."""
    inner = outer.part("thinker_config")
    if inner:
        return read(inner, text_width)
    config = outer.part("vision_config")
    if config is None:
        return None
    return _READERS.get(config.kind, _clip)(config, outer, text_width)


def _layer(
    count: int,
    hidden: int,
    inner: int,
    heads: int,
    *,
    activation: str,
    norm: Norm = "layer",
    gated: bool = False,
    fused: bool = False,
    bias: bool = True,
    qkv_bias: bool | None = None,
    rotary: bool = False,
    extra: int = 0,
) -> Layer:
    """A layer of a vision transformer (arXiv:2010.11929)."""
    qkv = bias if qkv_bias is None else qkv_bias
    makers = (
        [Linear("qkv", hidden, 3 * hidden, qkv)]
        if fused
        else [Linear(name, hidden, hidden, qkv) for name in ("q_proj", "k_proj", "v_proj")]
    )
    ups = [Linear("gate_proj", hidden, inner, bias)] if gated else []
    head_dim = hidden // max(1, heads)
    return Layer(
        count=count,
        hidden=hidden,
        norm=norm,
        attention=Attention(
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            value_dim=head_dim,
            rotary_dim=head_dim if rotary else 0,
            linears=(*makers, Linear("proj" if fused else "out_proj", hidden, hidden, bias)),
        ),
        mlp=Mlp(
            inner=inner,
            gated=gated,
            activation=activation,
            linears=(*ups, Linear("fc1", hidden, inner, bias), Linear("fc2", inner, hidden, bias)),
        ),
        extra=extra,
    )


def _patches(config: Values) -> int:
    """Patches of an image of the size the tower is made for."""
    side = config.number("image_size") // max(1, config.number("patch_size", default=1))
    return side * side


def _embedding(config: Values, hidden: int, *, bias: bool = True, classed: bool = False) -> int:
    """A convolution over patches, and learned positions."""
    patch = config.number("num_channels", "in_channels", default=3) * config.number("patch_size") ** 2
    rows = _patches(config) + classed
    return patch * hidden + bias * hidden + rows * hidden + classed * hidden


def _clip(config: Values, outer: Values, text: int) -> Vision:
    """CLIP and SigLIP, behind two linears (LLaVA), one (PaliGemma), or one and a norm (Gemma 3)."""
    hidden = config.number("hidden_size")
    clip = "clip" in config.kind
    layer = _layer(
        config.number("num_hidden_layers"), hidden, config.number("intermediate_size"),
        config.number("num_attention_heads"), activation=config.text("hidden_act", default="gelu"),
    )  # fmt: skip
    extra = _embedding(config, hidden, bias=not clip, classed=clip) + (4 if clip else 2) * hidden
    if not clip and config.flag("vision_use_head", default=True):
        extra += _pooling(hidden, config.number("intermediate_size"))
    projector: tuple[Linear, ...]
    tokens = outer.number("image_seq_length", "mm_tokens_per_image") or _patches(config)
    if outer.kind == "paligemma":
        projector = (Linear("linear", hidden, text, True),)
    elif outer.kind == "gemma3":
        projector = (Linear("mm_input_projection_weight", hidden, text),)
        extra += hidden
    else:
        bias = outer.flag("multimodal_projector_bias", default=True)
        projector = (Linear("linear_1", hidden, text, bias), Linear("linear_2", text, text, bias))
    if outer.kind == "llava_next":
        extra += text
    return Vision(hidden=hidden, layers=(layer,), projector=projector, tokens=tokens, extra=extra)


def _pooling(hidden: int, inner: int) -> int:
    """SigLIP's attention over all patches: a probe, attention, a norm and an MLP."""
    return hidden + 4 * (hidden * hidden + hidden) + 2 * hidden + 2 * hidden * inner + inner + hidden


def _frames(config: Values) -> int:
    """Numbers of a patch over the frames that are taken together."""
    channels = config.number("in_channels", "in_chans", default=3)
    return channels * config.number("temporal_patch_size") * config.number("patch_size") ** 2


def _qwen2_vl(config: Values, outer: Values, text: int) -> Vision:
    hidden, merged = config.number("embed_dim"), config.number("spatial_merge_size") ** 2
    layer = _layer(
        config.number("depth"), hidden, int(config.share("mlp_ratio", 4) * hidden), config.number("num_heads"),
        activation="quick_gelu", fused=True, rotary=True,
    )  # fmt: skip
    extra = _frames(config) * hidden + 2 * hidden
    projector = _merger(merged * hidden, config.number("hidden_size", default=text))
    return Vision(hidden=hidden, layers=(layer,), projector=projector, merged=merged, extra=extra)


def _merger(wide: int, outputs: int) -> tuple[Linear, ...]:
    """From the states of merged patches to the language model's width."""
    return Linear("mlp.0", wide, wide, True), Linear("mlp.2", wide, outputs, True)


def _qwen2_5_vl(config: Values, outer: Values, text: int) -> Vision:
    hidden, merged = config.number("hidden_size"), config.number("spatial_merge_size") ** 2
    layer = _layer(
        config.number("depth"), hidden, config.number("intermediate_size"), config.number("num_heads"),
        activation=config.text("hidden_act", default="silu"), norm="rms", gated=True, fused=True, rotary=True,
    )  # fmt: skip
    extra = _frames(config) * hidden + hidden
    projector = _merger(merged * hidden, config.number("out_hidden_size", default=text))
    return Vision(hidden=hidden, layers=(layer,), projector=projector, merged=merged, extra=extra)


def _qwen3_vl(config: Values, outer: Values, text: int) -> Vision:
    """Its states of a few layers are merged as those of the last (DeepStack, arXiv:2406.04334)."""
    hidden, merged = config.number("hidden_size"), config.number("spatial_merge_size") ** 2
    layer = _layer(
        config.number("depth"), hidden, config.number("intermediate_size"), config.number("num_heads"),
        activation=config.text("hidden_act", default="gelu_pytorch_tanh"), fused=True, rotary=True,
    )  # fmt: skip
    extra = _frames(config) * hidden + hidden + config.number("num_position_embeddings") * hidden + 2 * hidden
    wide, out = merged * hidden, config.number("out_hidden_size", default=text)
    deep = len(config.numbers("deepstack_visual_indexes") or [0] * 3)
    extra += deep * 2 * wide
    mergers = tuple(
        linear
        for _merger in range(1 + deep)
        for linear in (Linear("linear_fc1", wide, wide, True), Linear("linear_fc2", wide, out, True))
    )
    return Vision(hidden=hidden, layers=(layer,), projector=mergers, merged=merged, extra=extra)


def _internvl(config: Values, outer: Values, text: int) -> Vision:
    hidden, merged = config.number("hidden_size"), round(1 / max(0.01, outer.share("downsample_ratio", 0.5)) ** 2)
    norm: Norm = "rms" if config.text("norm_type") == "rms_norm" else "layer"
    qk = 2 * hidden if config.flag("use_qk_norm") else 0
    layer = _layer(
        config.number("num_hidden_layers"), hidden, config.number("intermediate_size"),
        config.number("num_attention_heads"), activation=config.text("hidden_act", default="gelu"), norm=norm,
        qkv_bias=config.flag("attention_bias"), extra=2 * hidden + qk,
    )  # fmt: skip
    image, patch = _side(config.get("image_size"), 448), _side(config.get("patch_size"), 14)
    positions = (image // patch) ** 2 + 1
    extra = 3 * patch**2 * hidden + hidden + hidden + positions * hidden
    wide = merged * hidden
    extra += 2 * wide
    projector = (Linear("linear_1", wide, text, True), Linear("linear_2", text, text, True))
    tokens = outer.number("image_seq_length", default=256)
    return Vision(hidden=hidden, layers=(layer,), projector=projector, merged=merged, tokens=tokens, extra=extra)


def _side(value: object, default: int) -> int:
    """Of a square: a number, or both sides."""
    side = value[0] if isinstance(value, list) and value else value
    return side if type(side) is int and side > 0 else default


_READERS: dict[str, Callable[[Values, Values, int], Vision]] = {
    "qwen2_vl_vision": _qwen2_vl, "qwen2_vl": _qwen2_vl, "qwen2_5_vl_vision": _qwen2_5_vl, "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl_vision": _qwen3_vl, "qwen3_vl": _qwen3_vl, "qwen3_vl_moe_vision": _qwen3_vl, "qwen3_vl_moe": _qwen3_vl,
    "internvl_vision": _internvl,
}  # fmt: skip
