"""What a model is made of, read from its config.json alone: `networks.read(config)`; `plan` counts memory by it.

A `Network` is its decoder layers by kind, each with its operations, and their linears under the names that the model
gives them:

    >>> network = read({"model_type": "qwen2", "hidden_size": 896, "num_hidden_layers": 24, …})
    >>> network.parameters
    494032768
    >>> network.layers[0].count, network.layers[0].attention.kv_heads, network.layers[0].mlp.inner
    (24, 2, 4864)
    >>> network.linears["k_proj"]
    (896, 128, 24)

Nothing is imported of torch or transformers; `parameters` equals what transformers counts (tests/test_networks.py).
"""

from toolbox.networks.parts import Attention, Experts, Layer, Linear, Mlp, Network, Vision
from toolbox.networks.reading import llama_like, read

__all__ = ["Attention", "Experts", "Layer", "Linear", "Mlp", "Network", "Vision", "llama_like", "read"]
