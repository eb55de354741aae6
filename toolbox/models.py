"""Models on this machine: where they lie, and the facts about them that planning needs."""

from pathlib import Path

import msgspec


class ModelFacts(msgspec.Struct, kw_only=True, frozen=True):
    """A base model, read from its config.json and its safetensors headers; nothing is loaded."""

    id: str
    """As the person names it: `demo`, `Qwen/Qwen2.5-7B-Instruct`, or a folder."""
    path: Path
    source: str
    """embedded, local, modelscope or huggingface."""
    revision: str = ""
    architecture: str
    """The first of `architectures`, as `Qwen3ForCausalLM`."""
    model_type: str
    parameters: int
    weights_bytes: int
    dtype: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    chat_template: bool
    quantization: str = ""
    """`quantization_config.quant_method` of a base that is already quantised."""
