"""The hyper-parameters of a model as GGUF's keys (ggml-org/ggml, docs/gguf.md)."""

from pathlib import Path
from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from toolbox import loading
from toolbox.errors import InputError
from toolbox.i18n import _


def config_of(source: Path) -> Any:
    """transformers' config of the language model in `source`."""
    return AutoConfig.from_pretrained(source, **loading.SAFE).get_text_config()


def add(writer: GGUFWriter, config: Any) -> list[str]:
    """Every setting that llama.cpp computes with; returns what it computes otherwise, in sentences."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    else:
        writer.add_layer_norm_eps(config.norm_epsilon)
    _add_scales(writer, config)
    _add_experts(writer, config)
    _add_rope(writer, config)
    return _add_windows(writer, config)


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _add_scales(writer: GGUFWriter, config: Any) -> None:
    """Gemma's caps of logits, Granite's factors."""
    for name, put in {
        "attn_logit_softcapping": writer.add_attn_logit_softcapping,
        "final_logit_softcapping": writer.add_final_logit_softcapping,
        "attention_multiplier": writer.add_attention_scale,
        "embedding_multiplier": writer.add_embedding_scale,
        "residual_multiplier": writer.add_residual_scale,
        "logits_scaling": writer.add_logit_scale,
    }.items():
        if value := getattr(config, name, None):
            put(float(value))


def _add_experts(writer: GGUFWriter, config: Any) -> None:
    count = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if not count:
        return
    sparse = getattr(config, "mlp_only_layers", None), getattr(config, "decoder_sparse_step", 1)
    if sparse[0] or sparse[1] != 1:
        raise InputError(
            _("Some layers of this model have no experts, which GGUF's {name} can't say.").format(name=writer.arch),
            _("Serve the model as it is."),
        )
    writer.add_expert_count(count)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if inner := getattr(config, "moe_intermediate_size", None):
        writer.add_expert_feed_forward_length(inner)
    if shared := getattr(config, "shared_expert_intermediate_size", None):
        writer.add_expert_shared_feed_forward_length(shared)


def rope_of(config: Any) -> dict[str, Any]:
    """The rotary embedding's settings, of the layers that see everything where they differ."""
    said = config.rope_parameters or {}
    return dict(said.get("full_attention", said))


def _add_rope(writer: GGUFWriter, config: Any) -> None:
    rope = rope_of(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_rope_dimension_count(int(head_dim(config) * rope.get("partial_rotary_factor", 1.0)))
    local = (config.rope_parameters or {}).get("sliding_attention")
    if isinstance(local, dict):
        writer.add_rope_freq_base_swa(float(local["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType.LINEAR if kind == "linear" else RopeScalingType.YARN)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
    if kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        writer.add_rope_scaling_attn_factors(float(ROPE_INIT_FUNCTIONS["longrope"](config, "cpu")[1]))
    if kind not in ("default", "linear", "yarn", "longrope", "llama3"):
        raise InputError(
            _("The model's rotary embedding is of the type {kind}, which GGUF can't say.").format(kind=kind),
            _("Serve the model as it is."),
        )


def rope_tensors(config: Any) -> dict[str, torch.Tensor]:
    """Factors of the frequencies that GGUF keeps as tensors: Llama 3's, and Phi-3's for short and long texts."""
    rope = rope_of(config)
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": torch.tensor(rope[f"{length}_factor"], dtype=torch.float32)
            for length in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]
    plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, 2 * len(scaled), 2) / (2 * len(scaled)))
    return {"rope_freqs.weight": plain / scaled}


def _add_windows(writer: GGUFWriter, config: Any) -> list[str]:
    """Which layers see only the last so many tokens."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or []
    local = [kind == "sliding_attention" for kind in kinds] or [bool(window)] * config.num_hidden_layers
    if not window or not any(local) or window >= config.max_position_embeddings:
        return []
    if writer.arch in ("gemma2", "gemma3", "olmo2"):
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern(local)
        return []
    return [
        _("Beyond {window} tokens llama.cpp attends to everything, where the model itself did not.").format(
            window=window
        )
    ]
