"""Machines and models that are not here: GPUs for the fake NVML, base models of real shapes without their gigabytes."""

import json
import math
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

T4 = {"name": "Tesla T4", "total_mib": 15360, "capability": [7, 5]}
A10 = {"name": "NVIDIA A10", "total_mib": 23028, "capability": [8, 6]}
A100 = {"name": "NVIDIA A100-SXM4-80GB", "total_mib": 81920, "capability": [8, 0]}
V100 = {"name": "Tesla V100-SXM2-16GB", "total_mib": 16160, "capability": [7, 0]}

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
    "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
"""config.json of Qwen2.5-7B, as far as planning reads it."""


def with_gpus(*gpus: dict[str, Any], **spec: Any) -> dict[str, str]:
    """The environment in which the fake NVML shows these GPUs; `spec` as tests/fake_nvml/sitecustomize.py says."""
    path = os.pathsep.join([str(ROOT / "tests" / "fake_nvml"), str(ROOT)])
    return {"FAKE_NVML": json.dumps({"gpus": gpus, **spec}), "PYTHONPATH": path}


def write_model(folder: Path, config: dict[str, Any]) -> Path:
    """A model folder with true headers and, in place of the weights, a hole in the file of their size."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes(config).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return folder


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Every weight of a Llama-like model, without biases."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    found = {"model.embed_tokens.weight": [vocabulary, hidden], "model.norm.weight": [hidden]}
    for layer in range(config["num_hidden_layers"]):
        block = {
            "self_attn.q_proj": [hidden, hidden], "self_attn.k_proj": [keys, hidden],
            "self_attn.v_proj": [keys, hidden], "self_attn.o_proj": [hidden, hidden], "mlp.gate_proj": [inner, hidden],
            "mlp.up_proj": [inner, hidden], "mlp.down_proj": [hidden, inner], "input_layernorm": [hidden],
            "post_attention_layernorm": [hidden],
        }  # fmt: skip
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    return found if config.get("tie_word_embeddings") else {**found, "lm_head.weight": [vocabulary, hidden]}
