"""The parts of a network: linears, attention, MLPs, experts, layers, vision towers; each counts its parameters."""

from collections.abc import Iterator
from typing import Literal

import msgspec

Norm = Literal["rms", "layer", "layer without bias", "centred", "plain"]
"""RMSNorm (arXiv:1910.07467); LayerNorm (arXiv:1607.06450) with weight and bias, with a weight alone, the same by
single operations (Cohere's), with neither."""
WEIGHTS_OF_NORM: dict[Norm, int] = {"rms": 1, "layer": 2, "layer without bias": 1, "centred": 1, "plain": 0}


class Linear(msgspec.Struct, frozen=True, omit_defaults=True):
    """A matrix, under the last part of its module's name; of a layer's linears no two are called alike."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.bias * self.outputs


class Attention(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """Attention over earlier tokens. Its linears are in the order of computation; the last gives the layer's width."""

    heads: int
    kv_heads: int
    head_dim: int
    """Of queries and keys."""
    value_dim: int
    """Of a head's values; it is `head_dim` but for latent attention."""
    linears: tuple[Linear, ...]
    rotary_dim: int = 0
    """Of the `head_dim` numbers, those that rotary embeddings turn (arXiv:2104.09864); 0: positions come otherwise."""
    broadcasts: bool = False
    """Whether heads that share keys are left to the product to broadcast, which no fused kernel does."""
    window: int = 0
    """Tokens back that are seen; 0: all."""
    norm: Literal["", "head", "width"] = ""
    """Norms of queries and keys: over each head, or over all heads at once."""
    q_rank: int = 0
    kv_rank: int = 0
    """Latent attention's (arXiv:2405.04434, section 2.1); 0: queries, keys and values come from the hidden states."""
    extra: int = 0
    """Parameters beside the linears: norms of queries and keys, sinks."""

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears) + self.extra


class Mlp(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """down(act(gate x) · up x) where `gated` (arXiv:2002.05202), else down(act(up x))."""

    inner: int
    gated: bool
    activation: str
    """As config.json calls it: silu, gelu_pytorch_tanh."""
    linears: tuple[Linear, ...]

    @property
    def parameters(self) -> int:
        return sum(linear.parameters for linear in self.linears)


class Experts(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A mixture of experts. transformers keeps their matrices in two tensors of three dimensions, which are no linears:
    neither LoRA on all linears nor 4 bits reach them."""

    count: int
    active: int
    inner: int
    gated: bool = True
    activation: str = "silu"
    bias: bool = False
    shared: Mlp | None = None
    """What all tokens go through."""
    extra: int = 0
    """The router's parameters."""
    hidden: int

    @property
    def each(self) -> int:
        """Parameters of an expert."""
        widths = self.inner * (2 if self.gated else 1)
        return self.hidden * (widths + self.inner) + self.bias * (widths + self.hidden)

    @property
    def routed(self) -> int:
        return self.count * self.each

    @property
    def parameters(self) -> int:
        return self.routed + self.extra + (self.shared.parameters if self.shared else 0)


class Layer(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A kind of decoder layer, and how many there are of it."""

    count: int = 1
    attention: Attention | None = None
    mlp: Mlp | None = None
    experts: Experts | None = None
    norms: int = 2
    """Of the hidden width."""
    norm: Norm = "rms"
    dropout: bool = False
    """Of what attention and MLP give."""
    parallel: bool = False
    """Whether attention and MLP read the same hidden states."""
    hidden: int
    others: tuple[Linear, ...] = ()
    """Linears of what stands in attention's place: state spaces, linear attention, convolutions."""
    extra: int = 0
    """Parameters that are in no part named here."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        parts = (self.attention, self.mlp, self.experts.shared if self.experts else None)
        return (*(linear for part in parts if part for linear in part.linears), *self.others)

    @property
    def parameters(self) -> int:
        """Of one such layer."""
        linear = sum(linear.parameters for linear in self.linears)
        attention = self.attention.extra if self.attention else 0
        experts = self.experts.routed + self.experts.extra if self.experts else 0
        return linear + attention + experts + self.norms * WEIGHTS_OF_NORM[self.norm] * self.hidden + self.extra

    @property
    def active_parameters(self) -> int:
        """Of one such layer, those that a token meets."""
        idle = (self.experts.count - self.experts.active) * self.experts.each if self.experts else 0
        return self.parameters - idle


class Vision(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A tower that makes tokens of images."""

    hidden: int
    layers: tuple[Layer, ...]
    projector: tuple[Linear, ...] = ()
    """What brings its states to the language model's width."""
    merged: int = 1
    """Patches that become one token."""
    tokens: int = 0
    """Of an image, where every image has as many; 0: as many as its size asks for."""
    extra: int = 0
    """Parameters of patch embeddings, positions and norms."""

    @property
    def in_linears(self) -> int:
        """Numbers in the matrices of linears."""
        layers = sum(layer.count * one.inputs * one.outputs for layer in self.layers for one in layer.linears)
        return layers + sum(one.inputs * one.outputs for one in self.projector)

    @property
    def parameters(self) -> int:
        layers = sum(layer.count * layer.parameters for layer in self.layers)
        return layers + sum(linear.parameters for linear in self.projector) + self.extra


class Network(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A causal language model, with the vision tower before it where there is one."""

    hidden: int
    vocab: int
    layers: tuple[Layer, ...]
    """By kind, in the order in which each first appears."""
    tied: bool = False
    """Whether the language head is the embedding."""
    norm: Norm = "rms"
    """The last one's kind."""
    head_bias: bool = False
    extra: int = 0
    """Parameters in no layer beside embeddings and head: learned positions, norms."""
    vision: Vision | None = None
    head_scaled: bool = False
    """Whether logits are scaled once they are made, into a second tensor."""
    rounds: bool = True
    """Whether its linears can be put into 4 bits."""
    flattens: bool = True
    """Whether its layers hand arguments on to attention, so that rows can be laid end to end."""

    @property
    def depth(self) -> int:
        return sum(layer.count for layer in self.layers)

    @property
    def embeddings(self) -> int:
        """Parameters of the embedding and of the head where that is another matrix."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + self.head_bias * self.vocab

    @property
    def parameters(self) -> int:
        return self.text_parameters + (self.vision.parameters if self.vision else 0)

    @property
    def text_parameters(self) -> int:
        return sum(layer.count * layer.parameters for layer in self.layers) + self.embeddings + self.extra

    @property
    def active_parameters(self) -> int:
        """Those that a token of text meets."""
        return sum(layer.count * layer.active_parameters for layer in self.layers) + self.embeddings + self.extra

    @property
    def linears(self) -> dict[str, tuple[int, int, int]]:
        """(inputs, outputs, how many) by name; where layers differ in one, the widest counts for all of that name."""
        found: dict[str, tuple[int, int, int]] = {}
        for linear, count in self.each_linear():
            inputs, outputs, before = found.get(linear.name, (0, 0, 0))
            found[linear.name] = (max(inputs, linear.inputs), max(outputs, linear.outputs), before + count)
        return found

    def each_linear(self) -> Iterator[tuple[Linear, int]]:
        """Every linear of the language model's layers, with how many layers have it."""
        for layer in self.layers:
            for linear in layer.linears:
                yield linear, layer.count
