"""How others train, on the memory model's tape: what bench/memory.py holds their own tables against.

Read in their sources, at the versions that were measured; nothing here is fitted to a figure.
"""

import msgspec

from toolbox.memory.states import NF4_BYTES, NF4_PLAIN_BYTES
from toolbox.networks import Attention, Layer, Mlp, Network

Parts = dict[str, float]
HALF, FLOAT = 2, 4
ADAM_16 = 2.0 * HALF
"""AdamW's two moments of a weight, in the weights' own 16 bits."""


class Job(msgspec.Struct, kw_only=True, frozen=True):
    """A row of a table: what was trained, and how."""

    network: Network
    method: str
    """lora, qlora, full, adapter, adapter_v2, inference."""
    batch: int
    tokens: int
    """Of each row of the batch, padded as they are."""
    quantised: str = ""
    """nf4 or nf4-dq."""
    rank: int = 0
    targets: tuple[str, ...] = ()
    """Of litgpt's six: query, key, value, projection, mlp, head."""
    dropout: bool = True
    softcaps: bool = False
    """Whether attention's scores are bent by a tanh, so that they are computed one operation at a time (Gemma 2)."""
    accumulates: bool = True
    repeats: bool = True
    """Whether a longest batch may come after a longest one; litgpt's scripts of 2023 put the longest row first."""
    checkpointing: bool = False
    gpus: int = 1
    moments: float = ADAM_16
    """Bytes of AdamW's two moments a weight, as far as torch's allocator counts them: paged ones it doesn't."""
    steps_in_backward: bool = False
    chunked: bool = True
    """Whether torchtune's loss takes a piece of the logits at a time."""
    compiled: bool = False
    offloads: bool = False
    """Whether the layers' inputs wait in the processor's memory."""
    weights_wait: bool = False
    """Whether weights and moments wait there (FSDP2's CPUOffloadPolicy)."""

    @property
    def weight_bytes(self) -> float:
        return {"": float(HALF), "nf4": NF4_PLAIN_BYTES, "nf4-dq": NF4_BYTES}[self.quantised]

    @property
    def trained(self) -> float:
        """Weights that are trained."""
        if self.method == "full":
            return float(self.network.parameters)
        total = 0
        for kind, part, mlp in self.parts:
            widths = {"query": part.queries, "key": part.keys, "value": part.keys}
            made = [(kind.hidden, widths[name]) for name in widths if name in self.targets]
            made += [(part.queries, kind.hidden)] if "projection" in self.targets else []
            if "mlp" in self.targets:
                made += [(kind.hidden, mlp.inner)] * (2 if mlp.gated else 1) + [(mlp.inner, kind.hidden)]
            total += kind.count * self.rank * sum(inputs + outputs for inputs, outputs in made)
        return float(total + (self.rank * (self.network.hidden + self.network.vocab) if "head" in self.targets else 0))

    @property
    def trains_norms(self) -> bool:
        return self.method in ("full", "adapter_v2")

    @property
    def parts(self) -> list[tuple[Layer, Attention, Mlp]]:
        """Each kind of layer with its attention and its MLP; the tables' models have both everywhere."""
        found = [(kind, kind.attention, kind.mlp) for kind in self.network.layers]
        return [(kind, attention, mlp) for kind, attention, mlp in found if attention and mlp]

    @property
    def rows(self) -> int:
        """Tokens of a micro-batch."""
        return self.batch * self.tokens

    @property
    def kinds(self) -> list[Layer]:
        """Of each layer in turn."""
        return [kind for kind in self.network.layers for _ in range(kind.count)]
