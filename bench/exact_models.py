"""The models that bench/exact.py counts: shapes as published, in the words of transformers' own config classes."""

from typing import Any

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {}
"""By name: the `model_type` and what its config.json says of shapes."""


def _llama_like(
    name: str,
    kind: str,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    keys: int,
    vocabulary: int,
    tied: bool = False,
    **more: Any,
) -> None:
    SHAPES[name] = kind, {
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": keys, "vocab_size": vocabulary, "tie_word_embeddings": tied,
        "max_position_embeddings": 1 << 15, **more,
    }  # fmt: skip


_llama_like("SmolLM2-135M", "llama", 576, 1536, 30, 9, 3, 49152, tied=True)
_llama_like("Llama-3.2-1B", "llama", 2048, 8192, 16, 32, 8, 128256, tied=True, head_dim=64)
_llama_like("TinyLlama-1.1B", "llama", 2048, 5632, 22, 32, 4, 32000)
_llama_like("Llama-2-7b", "llama", 4096, 11008, 32, 32, 32, 32000)
_llama_like("Llama-3.1-8B", "llama", 4096, 14336, 32, 32, 8, 128256)
_llama_like("Llama-2-70b", "llama", 8192, 28672, 80, 64, 8, 32000)
_llama_like("Mistral-7B-v0.3", "mistral", 4096, 14336, 32, 32, 8, 32768, sliding_window=None)
_llama_like("Qwen2.5-0.5B", "qwen2", 896, 4864, 24, 14, 2, 151936, tied=True)
_llama_like("Qwen2.5-1.5B", "qwen2", 1536, 8960, 28, 12, 2, 151936, tied=True)
_llama_like("Qwen2.5-7B", "qwen2", 3584, 18944, 28, 28, 4, 152064)
_llama_like("Qwen3-0.6B", "qwen3", 1024, 3072, 28, 16, 8, 151936, tied=True, head_dim=128)
_llama_like("Qwen3-8B", "qwen3", 4096, 12288, 36, 32, 8, 151936, head_dim=128)
_llama_like("gemma-2b", "gemma", 2048, 16384, 18, 8, 1, 256000, tied=True, head_dim=256)
_llama_like("gemma-2-2b", "gemma2", 2304, 9216, 26, 8, 4, 256000, tied=True, head_dim=256)
_llama_like("gemma-3-1b", "gemma3_text", 1152, 6912, 26, 4, 1, 262144, tied=True, head_dim=256)
_llama_like("phi-2", "phi", 2560, 10240, 32, 32, 32, 51200, partial_rotary_factor=0.4)
_llama_like("Phi-3-mini-4k", "phi3", 3072, 8192, 32, 32, 32, 32064)
_llama_like("stablelm-2-1_6b", "stablelm", 2048, 5632, 24, 32, 32, 100352, use_qkv_bias=True)
_llama_like("OLMo-1B", "olmo", 2048, 8192, 16, 16, 16, 50304, tied=True)
_llama_like("OLMo-2-1B", "olmo2", 2048, 8192, 16, 16, 16, 100352)
_llama_like("granite-3.1-2b", "granite", 2048, 8192, 40, 32, 8, 49155, tied=True)
_llama_like("glm-4-9b", "glm", 4096, 13696, 40, 32, 2, 151552, head_dim=128, attention_bias=True)
_llama_like("aya-23-8B", "cohere", 4096, 14336, 32, 32, 8, 256000, tied=True)
_llama_like("starcoder2-3b", "starcoder2", 3072, 12288, 30, 24, 2, 49152, tied=True, sliding_window=None)
_llama_like("Mixtral-8x7B", "mixtral", 4096, 14336, 32, 32, 8, 32000, num_local_experts=8, num_experts_per_tok=2)
_llama_like(
    "Qwen3-30B-A3B", "qwen3_moe", 2048, 6144, 48, 32, 4, 151936, head_dim=128, moe_intermediate_size=768,
    num_experts=128, num_experts_per_tok=8,
)  # fmt: skip
_llama_like(
    "DeepSeek-V2-Lite", "deepseek_v2", 2048, 10944, 27, 16, 16, 102400, moe_intermediate_size=1408,
    n_routed_experts=64, n_shared_experts=2, num_experts_per_tok=6, kv_lora_rank=512, q_lora_rank=None,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, first_k_dense_replace=1,
)  # fmt: skip
SHAPES |= {
    "falcon-7b": (
        "falcon",
        {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "vocab_size": 65024,
         "multi_query": True, "parallel_attn": True, "bias": False, "new_decoder_architecture": False,
         "ffn_hidden_size": 4 * 4544, "max_position_embeddings": 1 << 15},
    ),
    "gpt2": ("gpt2", {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257, "n_positions": 1024}),
    "pythia-1b": (
        "gpt_neox",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 8,
         "vocab_size": 50304, "max_position_embeddings": 1 << 15, "tie_word_embeddings": False},
    ),
    "Qwen2-VL-2B": (
        "qwen2_vl",
        {"text_config": {**SHAPES["Qwen2.5-1.5B"][1], "tie_word_embeddings": True}, "tie_word_embeddings": True,
         "vision_config": {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": 1536}},
    ),
    "llava-1.5-7b": (
        "llava",
        {"text_config": {"model_type": "llama", **SHAPES["Llama-2-7b"][1], "vocab_size": 32064},
         "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
                           "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
                           "projection_dim": 768}},
    ),
}  # fmt: skip
QUICK = (
    "SmolLM2-135M", "Llama-3.2-1B", "Qwen2.5-0.5B", "Qwen2.5-7B", "Qwen3-0.6B", "gemma-2b", "gpt2", "Phi-3-mini-4k",
)  # fmt: skip
