"""litgpt's finetuning (litgpt/finetune/*.py at 0.3 and 0.4; lit_gpt's of October 2023) and its generation."""

from collections.abc import Iterator

from loops import FLOAT, HALF, Job, Parts
from toolbox.memory.tape import Tape, Tensor
from toolbox.networks import Layer, Network

CHUNK = 128
"""Tokens that the language head and the loss take at once (finetune/lora.py, `lm_head_chunk_size=128`)."""
PROMPTED_FROM = 2
"""The first layer with an adaption prompt (adapter.py, `adapter_start_layer`)."""


class Blocks:
    """Decoder layers of litgpt (litgpt/model.py, lora.py, adapter.py, adapter_v2.py) in 16 bits, one tape each."""

    def __init__(self, job: Job) -> None:
        self.job, self.rows = job, job.rows
        self.tape = Tape()

    def layer(self, kind: Layer, index: int) -> Tape:
        """The operations of layer `index`; the first one's input needs no gradient."""
        self.tape = Tape()
        states = Tensor(self.rows * kind.hidden, HALF)
        seen = self.norm(states, kind, kept=index > 0 or self.job.trains_norms)
        attended = self.attention(seen, kind, index)
        if kind.norms == 4:
            attended = self.norm(attended, kind)
        between = states if kind.parallel else self.tape.add(attended, states)
        seen = seen if kind.parallel and kind.norms == 1 else self.norm(between, kind)
        out = self.mlp(seen, kind)
        if kind.norms == 4:
            out = self.norm(out, kind)
        self.tape.add(self.tape.add(out, attended) if kind.parallel else out, between)
        return self.tape

    def head(self, network: Network) -> Tape:
        """The last norm and the language head; the logits are in 16 bits yet."""
        self.tape = Tape()
        shape = Layer(hidden=network.hidden, norm=network.norm)
        seen = self.norm(Tensor(self.rows * network.hidden, HALF), shape)
        self.linear(seen, network.hidden, network.vocab, "head")
        return self.tape

    def norm(self, x: Tensor, kind: Layer, kept: bool = True) -> Tensor:
        """LayerNorm keeps what comes in. RMSNorm goes through float32, and where its weight is trained keeps what that
        is multiplied with."""
        tape, saves = self.tape, self.job.trains_norms
        if kind.norm != "rms":
            return tape.make(x.elements, HALF, (x,), saves=(x,) if kept else ())
        wide = tape.cast(x, FLOAT)
        squares = tape.make(x.elements, FLOAT, (wide,), saves=(wide,) if kept else ())
        inverse = tape.make(self.rows, FLOAT, (squares,))
        normed = tape.make(x.elements, FLOAT, (wide, inverse), saves=(wide, inverse) if kept else ())
        return tape.cast(tape.make(x.elements, FLOAT, (normed,), saves=(normed,) if saves else ()), HALF)

    def linear(self, x: Tensor, inputs: int, outputs: int, name: str) -> Tensor:
        """W x, with what the method puts beside it."""
        base = self.frozen(x, inputs, outputs)
        if self.job.method == "adapter_v2":  # scale · (W x + bias)
            shifted = self.tape.make(base.elements, HALF, (base,), passes=True)
            return self.tape.make(base.elements, HALF, (shifted,), saves=(shifted,))
        if name not in self.job.targets:
            return base
        low = self.tape.make(self.rows * self.job.rank, HALF, (dropped := self.dropped(x),), saves=(dropped,))
        up = self.tape.make(base.elements, HALF, (low,), saves=(low,))
        return self.tape.add(base, self.tape.make(up.elements, HALF, (up,)))

    def frozen(self, x: Tensor, inputs: int, outputs: int) -> Tensor:
        """4 bits: bitsandbytes 0.41 and 0.42 keep x (autograd/_functions.py, MatMul4Bit), and unpack to float16, as
        Lightning says (plugins/precision/bitsandbytes.py), of which a copy in bfloat16 is made."""
        size = inputs * outputs
        if self.job.method == "full":
            stays = 0 if self.job.accumulates else HALF * size
            return self.tape.make(self.rows * outputs, HALF, (x,), saves=(x,), back=HALF * size - stays, stays=stays)
        unpacked = 2 * HALF * size if self.job.quantised else 0
        saves = (x,) if self.job.quantised else ()
        return self.tape.make(self.rows * outputs, HALF, (x,), saves=saves, forward=unpacked, back=unpacked)

    def dropped(self, x: Tensor) -> Tensor:
        """Dropout's kernel keeps a byte a number."""
        if not self.job.dropout:
            return x
        return self.tape.make(x.elements, HALF, (x,), saves=(Tensor(x.elements, 1),))

    def queries(self, x: Tensor, kind: Layer) -> Tensor:
        """One linear for queries, keys and values; where not all three have a LoRA, its output is put in its places by
        an operation that keeps it (lora.py, `zero_pad`)."""
        part = kind.attention
        assert part
        outputs = part.queries + 2 * part.keys
        widths = {"query": part.queries, "key": part.keys, "value": part.keys}
        adapted = [name for name in widths if name in self.job.targets]
        if self.job.method == "adapter_v2" or not adapted:
            return self.linear(x, kind.hidden, outputs, "")
        base = self.frozen(x, kind.hidden, outputs)
        low = self.tape.make(
            self.rows * self.job.rank * len(adapted), HALF, (dropped := self.dropped(x),), saves=(dropped,)
        )
        up = self.tape.make(self.rows * sum(widths[name] for name in adapted), HALF, (low,), saves=(low,))
        scaled = self.tape.make(up.elements, HALF, (up,))
        if len(adapted) < len(widths):
            scaled = self.tape.make(base.elements, HALF, (scaled,), saves=(scaled,))
        return self.tape.add(base, scaled)

    def attention(self, x: Tensor, kind: Layer, index: int) -> Tensor:
        """Keys and values are copied for every query head that shares them; the result is copied into rows."""
        tape, part = self.tape, kind.attention
        assert part
        made, size = self.queries(x, kind), self.rows * part.queries
        shared = part.kv_heads < part.heads
        query, key, value = (tape.make(size, HALF, (made,), view=not shared) for _ in range(3))
        query, key = (self.turned(one, part.rotary_dim / part.head_dim) for one in (query, key))
        if self.job.softcaps:
            out = self.bent(query, key, value, part.heads)
        else:
            inputs, sums = (query, key, value), Tensor(self.rows * part.heads, FLOAT)
            out = tape.make(size, HALF, inputs, saves=(*inputs, sums), keeps=True, back=FLOAT * size)
        out = tape.make(size, HALF, (out,))
        if self.job.method.startswith("adapter") and index >= PROMPTED_FROM:
            prompted = tape.make(size, HALF, (query,), saves=(query,), keeps=True)
            out = tape.add(out, tape.make(size, HALF, (prompted,), saves=(prompted,)))
        return self.linear(out, part.queries, kind.hidden, "projection")

    def turned(self, x: Tensor, share: float) -> Tensor:
        """Rotary embeddings: cos and sin are float32 (model.py, `apply_rope`), and a copy is made at the end."""
        tape, size = self.tape, x.elements * share
        straight = tape.make(size, FLOAT, (x,))
        crossed = tape.make(size, FLOAT, (tape.make(size, HALF, (x,)),))
        whole = tape.cast(tape.make(size, FLOAT, (straight, crossed), passes=True), HALF)
        return tape.make(x.elements, HALF, (whole,) if share == 1 else (whole, x))

    def bent(self, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """Scores of all pairs in 16 bits, bent, masked, and their softmax in float32 (model.py)."""
        tape, size = self.tape, self.job.batch * heads * self.job.tokens**2
        scores = tape.make(size, HALF, (query, key), saves=(query, key))
        inner = tape.make(size, HALF, (scores,), keeps=True)
        masked = tape.make(size, HALF, (tape.make(size, HALF, (inner,)),), passes=True)
        likely = tape.cast(tape.make(size, FLOAT, (masked,), keeps=True), HALF)
        return tape.make(query.elements, HALF, (likely, value), saves=(likely, value))

    def mlp(self, x: Tensor, kind: Layer) -> Tensor:
        tape, part = self.tape, kind.mlp
        assert part
        gate = self.linear(x, kind.hidden, part.inner, "mlp")
        active = tape.make(gate.elements, HALF, (gate,), saves=(gate,))
        if part.gated:
            up = self.linear(x, kind.hidden, part.inner, "mlp")
            active = tape.make(gate.elements, HALF, (active, up), saves=(active, up))
        return self.linear(active, part.inner, kind.hidden, "mlp")


def peak(job: Job) -> Parts:
    """What litgpt allocates on a GPU at a step's highest moment, by parts."""
    moments = _spoken(job) if job.method == "inference" else _moments(job)
    return max(moments, key=lambda parts: sum(parts.values()))


def _spoken(job: Job) -> Iterator[Parts]:
    """Generating: the cache has keys and values for every query head, unless all share one (`build_kv_cache`)."""
    heads = sum(kind.count * (part.keys if part.kv_heads == 1 else part.queries) for kind, part, _ in job.parts)
    widest = max(linear.inputs * linear.outputs for linear, _count in job.network.each_linear())
    unpacked = _unpacked(job, max(widest, _head_size(job)))
    yield {"weights": _weights(job), "unpacked": unpacked, "cache": 2.0 * HALF * job.tokens * heads}


def _moments(job: Job) -> Iterator[Parts]:
    """The loss, the head going back, the last layer going back, the next step's head, the end."""
    network, blocks, there = job.network, Blocks(job), _standing(job)
    layers = [blocks.layer(kind, index) for index, kind in enumerate(job.kinds)]
    inputs = float(HALF * job.rows * network.hidden)
    kept = [inputs if job.checkpointing else layer.forward()[0] for layer in layers]
    if job.method == "adapter":
        kept[:PROMPTED_FROM] = [0.0] * PROMPTED_FROM
    logits, chunk = float(job.rows * network.vocab), float(job.batch * min(CHUNK, job.tokens) * network.vocab)
    whole = {**there, "activations": sum(kept) + blocks.head(network).forward()[0]}
    # Fabric makes float32 of what a model gives (HalfPrecision.convert_output), and the loop's variable holds it.
    # Beside it are the log-softmax and two gradients of a chunk; of full tuning, unchunked, a copy without the last
    # token and the log-softmax, then both their gradients.
    yield {**whole, "logits": FLOAT * (3 * logits if job.method == "full" else 2 * (logits + chunk))}
    unpacked = _unpacked(job, _head_size(job))
    yield {**whole, "logits": (FLOAT + HALF) * logits, "unpacked": unpacked}
    yield from _in_the_layers(job, layers, kept, {**there, "logits": FLOAT * logits})
    if job.quantised and job.repeats:
        held = _held(job) + FLOAT * logits
        yield {**whole, "logits": HALF * logits, "unpacked": unpacked, "the step before": held}
        yield {**whole, "logits": (HALF + FLOAT) * logits, "the step before": held}


def _in_the_layers(job: Job, layers: list[Tape], kept: list[float], there: Parts) -> Iterator[Parts]:
    """The last layer going back, and with FSDP the gradients that become one of a flat parameter: while a layer's, or
    the root's, are put together, they are there twice (torch/distributed/fsdp/_flat_param.py, views by `split`)."""
    inputs = float(HALF * job.rows * job.network.hidden)
    back = layers[-1].backward(inputs)[1]
    anew = max(back, layers[-1].forward()[1] + inputs) if job.checkpointing else back
    layer = HALF * job.kinds[-1].parameters if job.gpus > 1 else 0.0
    root, below = there["gathered"], {**there, "activations": sum(kept[:-1])}
    gathered = root + 2 * layer  # the layer at work and the one before it
    yield {**there, "activations": sum(kept[:-1]) + anew, "gathered": gathered}
    yield {**below, "gathered": gathered, "gradients": there["gradients"] + 2 * layer}
    reduced = there["gradients"] if job.accumulates else HALF * _graded(job) / job.gpus
    yield {**there, "gradients": reduced + (2 * root if job.method == "full" else 0.0)}
    # AdamW takes the roots of all second moments at once (torch/optim/adam.py, `_multi_tensor_adam`).
    roots = 0.0 if job.quantised else HALF * job.trained / job.gpus
    yield {**there, "gradients": HALF * _graded(job) / job.gpus, "optimizer": there["optimizer"] + roots}


def _held(job: Job) -> float:
    """Inputs of 4-bit linears that outlive their backward pass: they are attributes of autograd's nodes, which live
    until the loop's variable gets the next loss."""
    total = 0
    for kind, part, mlp in job.parts:
        read = 1 if kind.parallel and kind.norms == 1 else 2
        total += kind.count * (read * kind.hidden + part.queries + mlp.inner)
    return float(HALF * job.rows * total)


def _standing(job: Job) -> Parts:
    """Weights, an adapter, gradients of earlier micro-batches, moments; the root's weights, which FSDP leaves whole."""
    trained = job.trained
    met = job.accumulates and (job.repeats or job.gpus > 1)
    return {
        "weights": _weights(job) / job.gpus,
        "adapter": 0.0 if job.method == "full" else HALF * trained / job.gpus,
        "gradients": HALF * _graded(job) if met else 0.0,
        "optimizer": job.moments * trained / job.gpus if job.repeats else 0.0,
        "gathered": 2.0 * HALF * _head_size(job) if job.gpus > 1 else 0.0,
    }


def _graded(job: Job) -> float:
    """Weights that have a gradient. FSDP's flat parameter has one for all that is in it where any of it is trained, and
    while gradients accumulate without being exchanged, each GPU has all of them (`no_sync`)."""
    frozen_root = 2 * _head_size(job) if job.method != "full" else 0
    return float(job.network.parameters - frozen_root) if job.gpus > 1 else job.trained


def _weights(job: Job) -> float:
    """All linears are in 4 bits, the head too: Lightning replaces every torch.nn.Linear."""
    linear = sum(linear.inputs * linear.outputs * count for linear, count in job.network.each_linear())
    linear += _head_size(job)
    return HALF * (job.network.parameters - linear) + job.weight_bytes * linear


def _head_size(job: Job) -> int:
    return job.network.vocab * job.network.hidden


def _unpacked(job: Job, weights: int) -> float:
    """Of a 4-bit linear: float16, as it was before it was quantised, and its copy in bfloat16."""
    return 2.0 * HALF * weights if job.quantised else 0.0
