"""torchtune's recipes (recipes/*_finetune_*.py at 0.6): separate linears, one GPU or FSDP2, torch.compile or not."""

from collections.abc import Iterator

from loops import FLOAT, HALF, Job, Parts
from loops.litgpt import Blocks
from toolbox.memory.tape import Tape, Tensor
from toolbox.networks import Layer, Network

PIECES = 8
"""Of the chunked loss (modules/loss/ce_chunked_output_loss.py)."""
GATHERED = 2
"""Layers whose weights FSDP2 has whole at a time: the one at work and the one after it."""


class Layers(Blocks):
    """Decoder layers of modules/transformer.py. torch.compile's partitioner keeps what goes into products of matrices
    and into attention, and computes what is between anew (torch/_functorch/partitioners.py, `is_materialized`)."""

    def norm(self, x: Tensor, kind: Layer, kept: bool = True) -> Tensor:
        """In float32, and scaled there (modules/rms_norm.py)."""
        if self.job.compiled:
            return self.tape.make(x.elements, HALF, (x,), saves=(x,))
        return super().norm(x, kind, kept)

    def linear(self, x: Tensor, inputs: int, outputs: int, name: str) -> Tensor:
        """LoRA beside it, without dropout; 4 bits are unpacked to 16, and nothing is kept for that
        (modules/peft/lora.py, torchao's nf4tensor.py)."""
        if self.job.method == "full" or name not in self.job.targets:
            return self.frozen(x, inputs, outputs)
        base = self.frozen(x, inputs, outputs)
        low = self.tape.make(self.rows * self.job.rank, HALF, (x,), saves=(x,))
        return self.tape.add(base, self.tape.make(base.elements, HALF, (low,), saves=(low,)))

    def frozen(self, x: Tensor, inputs: int, outputs: int) -> Tensor:
        if self.job.method == "full":
            return super().frozen(x, inputs, outputs)
        unpacked = HALF * inputs * outputs if self.job.quantised else 0
        return self.tape.make(self.rows * outputs, HALF, (x,), forward=unpacked, back=unpacked)

    def attention(self, x: Tensor, kind: Layer, index: int) -> Tensor:
        """Keys and values are copied for every query head that shares them (modules/attention.py)."""
        tape, part = self.tape, kind.attention
        assert part
        size = self.rows * part.queries
        query = self.turned(self.linear(x, kind.hidden, part.queries, "query"), 1.0)
        key = self.turned(self.linear(x, kind.hidden, part.keys, "key"), 1.0)
        value = self.linear(x, kind.hidden, part.keys, "value")
        if part.kv_heads < part.heads:
            key, value = (tape.make(size, HALF, (one,)) for one in (key, value))
        inputs, sums = (query, key, value), Tensor(self.rows * part.heads, FLOAT)
        out = tape.make(size, HALF, inputs, saves=(*inputs, sums), keeps=True, back=FLOAT * size)
        return self.linear(out, part.queries, kind.hidden, "projection")

    def turned(self, x: Tensor, share: float) -> Tensor:
        """Pairs of numbers in float32, turned, stacked and cast back (modules/position_embeddings.py)."""
        if self.job.compiled:
            return self.tape.make(x.elements, HALF, (x,))
        wide = self.tape.cast(x, FLOAT)
        return self.tape.cast(self.tape.make(x.elements, FLOAT, (wide,)), HALF)

    def mlp(self, x: Tensor, kind: Layer) -> Tensor:
        part = kind.mlp
        assert part
        if not self.job.compiled:
            return super().mlp(x, kind)
        gate, up = (self.linear(x, kind.hidden, part.inner, "mlp") for _ in range(2))
        return self.linear(
            self.tape.make(up.elements, HALF, (gate, up), saves=(gate, up)), part.inner, kind.hidden, "mlp"
        )

    def last(self, network: Network) -> Tape:
        """The last norm, which is never compiled with the layers, and what the head reads."""
        self.tape = Tape()
        Blocks.norm(self, Tensor(self.rows * network.hidden, HALF), Layer(hidden=network.hidden))
        return self.tape


def peak(job: Job) -> Parts:
    """What torchtune allocates on a GPU at a step's highest moment, by parts."""
    return max(_moments(job), key=lambda parts: sum(parts.values()))


def _moments(job: Job) -> Iterator[Parts]:
    network, rows, full = job.network, job.rows, job.method == "full"
    blocks, there = Layers(job), _standing(job)
    layers = [blocks.layer(kind, index) for index, kind in enumerate(job.kinds)]
    inputs = float(HALF * rows * network.hidden)
    waiting = 0.0 if job.offloads else inputs
    kept = [waiting if job.checkpointing else layer.forward()[0] for layer in layers]
    last = HALF * rows * network.hidden + blocks.last(network).forward()[0]
    logits, head = float(rows * network.vocab), float(HALF * network.vocab * network.hidden)
    gathered = head if job.gpus > 1 else 0.0
    for size, weights in _loss(job, logits, head):
        yield {**there, "activations": sum(kept) + last, "logits": size, "gradients": weights, "gathered": gathered}
    standing = head if full else 0.0
    layer = _layer_bytes(job)
    for index in reversed(range(len(layers))):
        stays, back = layers[index].backward(inputs)
        anew = max(back, layers[index].forward()[1] + inputs) if job.checkpointing else back
        shared = GATHERED * layer if job.gpus > 1 else 0.0
        yield {**there, "activations": sum(kept[:index]) + anew, "gradients": standing, "gathered": shared}
        standing += 0.0 if job.steps_in_backward or job.gpus > 1 else stays
    whole = HALF * network.parameters if full and not job.steps_in_backward and job.gpus == 1 else 0.0
    yield {**there, "gradients": whole + (head if full else 0.0)}


def _loss(job: Job, logits: float, head: float) -> Iterator[tuple[float, float]]:
    """(logits and what the loss makes of them, gradients of the head's weight) going forward and back."""
    if not job.chunked:
        # Logits in float32; by single operations their log-softmax is kept, and two gradients are there at once.
        # Compiled, the logits themselves, their gradient and its copy in 16 bits.
        yield (2 * FLOAT + HALF if job.compiled else 3 * FLOAT) * logits, 0.0
        return
    piece = logits / PIECES
    # By single operations each piece's log-softmax is kept in float32, and two of its gradients are there at once.
    # Compiled, the piece itself is kept, and one kernel writes one gradient.
    yield HALF * (logits + piece) if job.compiled else FLOAT * (logits + 2 * piece), 0.0
    if job.method == "full":  # the second piece's gradient of the weight is summed with the first one's
        yield HALF * (logits - piece), 2 * head


def _layer_bytes(job: Job) -> float:
    """Of a layer's weights, as FSDP2 gathers them."""
    kind = job.kinds[0]
    return job.weight_bytes * kind.parameters


def _standing(job: Job) -> Parts:
    """Weights, an adapter, moments, on one GPU. Weights that wait in the processor's memory are nowhere but at work."""
    network = job.network
    linear = sum(linear.inputs * linear.outputs * count for linear, count in network.each_linear())
    weights = HALF * (network.parameters - linear) + job.weight_bytes * linear
    there = 0.0 if job.weights_wait else 1.0
    return {
        "weights": there * weights / job.gpus,
        "adapter": 0.0 if job.method == "full" else HALF * job.trained / job.gpus,
        "optimizer": there * job.moments * job.trained / job.gpus,
    }
