"""What a training loop casts, fuses and keeps: ours on CUDA and on processors; others' to hold their tables against."""

from typing import Literal

import msgspec


class Implementation(msgspec.Struct, kw_only=True, frozen=True):
    """The choices of a training loop that decide what is in memory; tape.py counts by them.

    Widths of types are bytes; 0 is the plan's own dtype.
    """

    name: str
    trained_weights: int = 4
    """Of weights that are trained themselves (full tuning): 4 are masters for autocast, 0 pure 16 bits."""
    adapter_weights: int = 4
    """Of an adapter's weights, and its gradients and moments."""
    autocast: bool = True
    """Whether linears cast what comes in: each makes a copy of its own, and of weights that need one a copy for all."""
    lora: Literal["peft", "own", "plain"] = "peft"
    """How an adapted linear computes. peft: x is cast to the adapter's type, and back under autocast, so each keeps a
    copy of x (peft 0.21, tuners/lora/layer.py). own: one autograd function that keeps x itself (training/adapted.py).
    plain: x is in the adapter's type already, and kept as it is, once for all linears that read it."""
    dropout_mask: int = 1
    """Of a number of dropout's mask: a byte on CUDA (native_dropout), 0, the input's own type, on a processor."""
    norm: Literal["chain", "fused"] = "chain"
    """chain: RMSNorm in float32 by single operations (transformers' modeling_llama.py). fused: one kernel, that keeps
    its input and a number a token."""
    mlp: Literal["chain", "fused"] = "chain"
    """chain: activation, product. fused: one kernel keeps gate and up, and writes gradients over them (Liger)."""
    attention: Literal["products", "flash", "math"] = "flash"
    """products: queries, keys, values (training/products.py). flash: the output and a number a query and head too
    (arXiv:2205.14135). math: probabilities of all keys, twice where they are cast."""
    repeats_keys: bool = False
    """Whether keys and values are copied for each of the query heads that share them."""
    rope: Literal["chain", "complex"] = "chain"
    """chain: two products and a sum in the type of the queries. complex: in float32, which is cast back."""
    loss: Literal["logps", "cross_entropy", "chunked"] = "logps"
    """logps: the gradient is written over the logits (training/logps.py). cross_entropy: of all logits in float32.
    chunked: of a piece of the logits at a time, whose copies in float32 are kept."""
    loss_copies: float = 0.0
    """cross_entropy and chunked: bytes beside a logit itself, at the moment when there are most."""
    loss_piece: int = 0
    """logps: logits handled at once in float32."""
    labels_only: bool = True
    """Whether logits are made only where a label is."""
    unpacked: Literal["one", "kept"] = "one"
    """4-bit weights: one linear is unpacked at a time; kept: autograd keeps each linear's unpacked matrix."""
    gradients_in_backward: bool = False
    """Whether the optimizer steps as soon as a weight has its gradient, so that there are never many."""


CUDA = Implementation(name="ours on CUDA", loss_piece=1 << 25)
CPU = Implementation(name="ours on a processor", lora="own", dropout_mask=0, attention="products", loss_piece=1 << 21)
MPS = Implementation(name="ours on Apple's GPU", attention="math", loss_piece=1 << 25)
BY_DEVICE = {"cuda": CUDA, "cpu": CPU, "mps": MPS}
