"""How each `model_type` differs from Llama, where its config.json doesn't say so itself."""

from typing import Literal

import msgspec

from toolbox.networks.parts import Norm


class Flavour(msgspec.Struct, kw_only=True, frozen=True):
    """Llama's where nothing is said. A text in place of a switch names the field of the config that is it."""

    qkv_bias: bool | str = "attention_bias"
    o_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    head_bias: bool | str = False
    qkv: str = ""
    """The name of the one linear that makes queries, keys and values; empty: q_proj, k_proj, v_proj."""
    o: str = "o_proj"
    gated: bool = True
    gate_up: str = ""
    """The name of the one linear that makes gate and up."""
    up: str = "up_proj"
    down: str = "down_proj"
    qk_norm: Literal["", "head", "width"] = ""
    qk_norm_if: str = ""
    """The switch that it depends on."""
    norm: Norm = "rms"
    norms: int = 2
    parallel: bool | str = False
    positions: int | None = None
    """Rows of a learned embedding of positions beside as many as the model takes; None: rotary embeddings."""
    rotary: bool = True
    embedding_norm: bool = False
    rounds: bool = True
    """Whether its linears are torch's own class: transformers puts no other into 4 bits (integrations/bitsandbytes.py,
    replace_with_bnb_linear)."""
    flattens: bool = True
    """Whether transformers' layers hand arguments on to attention (training/attention.py, NodesLost)."""
    interleaved: bool = False
    """Every so many layers have experts, as `interleave_moe_layer_step` says."""


_Said = dict[str, object]
_NEOX: _Said = {"qkv": "query_key_value", "o": "dense", "gated": False, "up": "dense_h_to_4h", "down": "dense_4h_to_h"}
_QWEN2: _Said = {"qkv_bias": True, "o_bias": False}
_GEMMA3: _Said = {"norms": 4, "qk_norm": "head"}
_FUSED: _Said = {"gate_up": "gate_up_proj", "mlp_bias": False}
_PLAIN: _Said = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
_GLM: _Said = {**_FUSED, "o_bias": False}
_ALL_BIASED: _Said = {"qkv_bias": True, "o_bias": True, "mlp_bias": True, "gated": False, "norm": "layer"}
_OPT: _Said = {**_ALL_BIASED, "o": "out_proj", "up": "fc1", "down": "fc2", "rotary": False}
_GPT2: _Said = {**_ALL_BIASED, "qkv": "c_attn", "o": "attn.c_proj", "up": "c_fc", "down": "mlp.c_proj", "rotary": False}
_USE_BIAS: _Said = {"qkv_bias": "use_bias", "o_bias": "use_bias", "mlp_bias": "use_bias"}
_HEADS: _Said = {"qk_norm": "head"}

_DIFFERENCES: dict[str, _Said] = {
    "qwen2": _QWEN2, "qwen2_vl_text": _QWEN2, "qwen2_5_vl_text": _QWEN2, "qwen2_5_omni_text": _QWEN2,
    "qwen2_moe": {"qkv_bias": "qkv_bias", "o_bias": False},
    "qwen3": _HEADS, "qwen3_moe": _HEADS, "qwen3_vl_text": _HEADS, "qwen3_vl_moe_text": _HEADS,
    "qwen3_omni_moe_text": _HEADS,
    "gemma2": {"norms": 4}, "gemma3_text": _GEMMA3, "vaultgemma": {},
    "mistral": _PLAIN, "mixtral": _PLAIN, "ministral": _PLAIN, "ministral3": _PLAIN, "minimax_m2": {
        **_PLAIN, "qk_norm": "width", "qk_norm_if": "use_qk_norm"},
    "phi": {**_ALL_BIASED, "o": "dense", "up": "fc1", "down": "fc2", "norms": 1, "parallel": True, "head_bias": True,
            "qk_norm": "head", "qk_norm_if": "qk_layernorm"},
    "phi3": {**_PLAIN, "qkv": "qkv_proj", "gate_up": "gate_up_proj"},
    "phimoe": {"norm": "layer", "head_bias": "lm_head_bias"},
    "gpt2": {**_GPT2, "positions": 0},
    "gpt_bigcode": {**_GPT2, "positions": 0},
    "gpt_neo": {**_OPT, "qkv_bias": False, "up": "c_fc", "down": "c_proj", "positions": 0},
    "gptj": {**_OPT, "qkv_bias": False, "o_bias": False, "up": "fc_in", "down": "fc_out", "norms": 1, "parallel": True,
             "head_bias": True, "rotary": True},
    "codegen": {**_OPT, "qkv": "qkv_proj", "qkv_bias": False, "o_bias": False, "up": "fc_in", "down": "fc_out",
                "norms": 1, "parallel": True, "head_bias": True, "rotary": True},
    "opt": {**_OPT, "positions": 2},
    "bloom": {**_ALL_BIASED, **_NEOX, "rotary": False, "embedding_norm": True},
    "gpt_neox": {**_NEOX, "norm": "layer", "mlp_bias": True, "parallel": "use_parallel_residual"},
    "falcon": {**_NEOX, "rounds": False, "norm": "layer", "qkv_bias": "bias", "o_bias": "bias", "mlp_bias": "bias"},
    "mpt": {"qkv": "Wqkv", "o": "out_proj", "gated": False, "up": "up_proj", "down": "down_proj", **_PLAIN,
            "norm": "layer without bias", "rotary": False},
    "persimmon": {**_ALL_BIASED, **_NEOX, "qk_norm": "head", "qk_norm_if": "qk_layernorm"},
    "stablelm": {"flattens": False, "qkv_bias": "use_qkv_bias", "o_bias": False, "mlp_bias": False, "norm": "layer",
                 "parallel": "use_parallel_residual"},
    "olmo": {"mlp_bias": False, "norm": "plain"},
    "olmo2": {"qk_norm": "width"}, "olmo3": {"qk_norm": "width"}, "olmoe": {"qk_norm": "width"},
    "flex_olmo": {"qk_norm": "width"},
    "starcoder2": {**_USE_BIAS, "gated": False, "up": "c_fc", "down": "c_proj", "norm": "layer"},
    "cohere": {"mlp_bias": False, "norm": "centred", "norms": 1, "parallel": True, "qk_norm": "width",
               "qk_norm_if": "use_qk_norm"},
    "cohere2": {"mlp_bias": False, "norm": "centred", "norms": 1, "parallel": True},
    "glm": _GLM, "glm4": {**_GLM, "norms": 4},
    "glm4v_text": {**_FUSED, "qkv_bias": True, "o_bias": False, "norms": 4},
    "glm4_moe": {"o_bias": False, "mlp_bias": False, "qk_norm": "head", "qk_norm_if": "use_qk_norm"},
    "glm4v_moe_text": {"o_bias": False, "mlp_bias": False},
    "nemotron": {"gated": False, "norm": "layer"},
    "hunyuan_v1_dense": _HEADS, "hunyuan_v1_moe": _HEADS,
    "ernie4_5": _USE_BIAS, "ernie4_5_moe": _USE_BIAS, "ernie4_5_vl_moe_text": _USE_BIAS,
    "seed_oss": {"o_bias": "attention_out_bias"},
    "exaone4": {**_PLAIN, **_HEADS}, "dots1": {"mlp_bias": False, **_HEADS},
    "internlm3": {"qkv_bias": "qkv_bias", "o_bias": "bias", "mlp_bias": "bias"},
    "llama4_text": {"mlp_bias": False, "interleaved": True},
    "apertus": {"qk_norm": "head", "gated": False},
    "arcee": {"gated": False},
}  # fmt: skip

FLAVOURS: dict[str, Flavour] = {
    kind: msgspec.convert(differences, Flavour) for kind, differences in _DIFFERENCES.items()
}
LLAMA = Flavour()
