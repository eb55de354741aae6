"""The operations of a decoder layer and of the head, as transformers and peft compute them, on a tape.

Each function says which tensors its operations keep; bench/activations.py measures the sums with autograd's own hooks.
"""

from functools import lru_cache

import msgspec

from toolbox.memory.implementation import Implementation
from toolbox.memory.tape import Tape, Tensor
from toolbox.networks import Attention, Experts, Layer, Linear, Mlp, Network

FLOAT = 4
BLOCK = 128
"""Queries that training/products.py takes at once."""
CHAINED = ("gelu_new", "gelu_fast", "gelu_python_tanh")
"""Activations of many operations (transformers' activations.py, NewGELUActivation)."""


class Work(msgspec.Struct, kw_only=True, frozen=True):
    """What a micro-batch and a recipe ask of a layer."""

    tokens: int
    longest: int
    """Tokens of the longest row, within which attention stays."""
    width: int
    """Bytes of a number of the arithmetic."""
    stream: int
    """Bytes of a number of the hidden states: those of the embedding's type."""
    full: bool
    """Whether the layer's own weights are trained."""
    targets: frozenset[str] = frozenset()
    """The linears that have a LoRA."""
    rank: int = 0
    dropout: bool = False
    quantised: float = 0.0
    """Bytes a weight of a linear in 4 bits; 0: none is."""
    intervention: int = 0
    """Rank of LoReFT's edit of what each layer gives (toolbox/loreft.py)."""
    norms_in_float32: bool = False
    """Whether autocast computes LayerNorm in float32: on CUDA it does, on a processor not."""
    accumulates: bool = False
    """Whether there are gradients from an earlier micro-batch."""

    @property
    def casts(self) -> bool:
        return self.width != FLOAT


@lru_cache(maxsize=1024)
def layer_tape(layer: Layer, work: Work, how: Implementation, graded: bool = True) -> Tape:
    """The operations of one layer. `graded`: what comes in gets a gradient: something below is trained.

    The search asks for the same layer under many recipes and devices, so a finished tape is kept: nothing may be added.
    """
    tape = Tape()
    made = _Maker(tape, work, how)
    states = Tensor(work.tokens * layer.hidden, work.stream, graded=graded)
    seen = made.norm(states, layer) if layer.norms else states
    attended = made.attention(seen, layer)
    if layer.dropout:
        attended = made.dropped(attended)
    if layer.norms == 4:
        attended = made.norm(attended, layer)
    between = states if layer.parallel else tape.add(states, attended)
    seen = seen if layer.parallel and layer.norms == 1 else made.norm(between, layer)
    out = made.mlp(seen, layer.mlp) if layer.mlp else made.experts(seen, layer.experts) if layer.experts else seen
    if layer.dropout:
        out = made.dropped(out)
    if layer.norms == 4:
        out = made.norm(out, layer)
    given = tape.add(tape.add(out, attended), states) if layer.parallel else tape.add(between, out)
    if work.intervention:
        made.edited(given)
    return tape


def head_tape(network: Network, work: Work, how: Implementation, labels: int, trained: bool) -> Tape:
    """From the last layer to the logits at `labels` places; the gradient that comes in is that of the logits."""
    tape = Tape()
    made = _Maker(tape, work, how)
    states = Tensor(work.tokens * network.hidden, work.stream)
    shape = Layer(hidden=network.hidden, norm=network.norm)
    seen = made.norm(states, shape)
    if how.labels_only:
        seen = tape.make(labels * network.hidden, seen.width, (seen,))
    head = Linear("lm_head", network.hidden, network.vocab, network.head_bias)
    if trained:
        made.linear(seen, head, labels, whole=True)
    else:
        made.frozen(seen, head, labels, 0)
    return tape


class _Maker:
    """Puts operations on a tape."""

    def __init__(self, tape: Tape, work: Work, how: Implementation) -> None:
        self.tape, self.work, self.how = tape, work, how

    def linear(self, x: Tensor, linear: Linear, tokens: float, whole: bool = False) -> Tensor:
        """A linear of the layer: with an adapter, trained, or neither."""
        if self.work.full or whole:
            return self._trained(x, linear, tokens)
        if linear.name in self.work.targets:
            return self._adapted(x, linear, tokens)
        return self.frozen(x, linear, tokens, self.work.quantised)

    def frozen(self, x: Tensor, linear: Linear, tokens: float, quantised: float) -> Tensor:
        """It keeps nothing but its weight; one in 4 bits is unpacked in each direction."""
        unpacked = self.work.width * linear.inputs * linear.outputs if quantised else 0
        taken = self.tape.cast(x, self.work.width)
        made = self.tape.make(tokens * linear.outputs, self.work.width, (taken,), forward=unpacked, back=unpacked)
        return self.tape.cast(made, x.width) if quantised else made

    def _trained(self, x: Tensor, linear: Linear, tokens: float) -> Tensor:
        """It keeps what comes in, and under autocast a 16-bit copy of its weight."""
        taken = self.tape.cast(x, self.work.width)
        return self._by_weights(taken, tokens * linear.outputs, linear.inputs * linear.outputs)

    def _by_weights(self, x: Tensor, elements: float, weights: float) -> Tensor:
        """A product with weights that are trained. Their gradient has the copy's type first, then their own."""
        how, width = self.how, self.work.width
        own = how.trained_weights or width
        adds = self.work.accumulates or how.gradients_in_backward
        size = own * weights
        if not how.autocast or own == width:
            back, stays = (size, 0.0) if adds else (0.0, size)
            return self.tape.make(elements, width, (x,), saves=(x,), trains=True, back=back, stays=stays)
        back, stays = (size, 0.0) if adds else (0.0, size)
        copy = self.tape.make(weights, width, (), trains=True, back=back, stays=stays)
        return self.tape.make(elements, width, (x, copy), saves=(x, copy))

    def _adapted(self, x: Tensor, linear: Linear, tokens: float) -> Tensor:
        """W x + scaling · B A x (arXiv:2106.09685)."""
        tape, work, lora = self.tape, self.work, self.how.lora
        low = tokens * work.rank
        if work.quantised and lora == "peft":
            lora = "plain"  # under autocast on CUDA, peft/tuners/lora/bnb.py leaves x as it is
        if lora == "own" and not (work.quantised or work.dropout):
            taken = tape.cast(x, work.width)
            kept = Tensor(low, work.width)
            return tape.make(tokens * linear.outputs, work.width, (taken,), saves=(taken, kept), trains=True)
        base = self.frozen(x, linear, tokens, work.quantised)
        if work.quantised:
            base = tape.make(base.elements, base.width, (base,), passes=True)  # peft clones it
        taken = x if lora == "plain" else tape.cast(x, self.how.adapter_weights)
        if work.dropout:
            taken = self.dropped(taken)
        taken = tape.cast(taken, work.width)
        copied = work.width if self.how.autocast and self.how.adapter_weights != work.width else 0
        a, b = (Tensor(work.rank * side, copied) for side in (linear.inputs, linear.outputs))
        down = tape.make(low, work.width, (taken,), saves=(taken, a), trains=True)
        up = tape.make(tokens * linear.outputs, work.width, (down,), saves=(down, b))
        return tape.add(base, tape.make(up.elements, up.width, (up,)))

    def dropped(self, x: Tensor) -> Tensor:
        mask = Tensor(x.elements, self.how.dropout_mask or x.width)
        return self.tape.make(x.elements, x.width, (x,), saves=(mask,))

    def norm(self, x: Tensor, layer: Layer, trained: bool | None = None) -> Tensor:
        """RMSNorm in float32 by single operations (transformers' modeling_llama.py); LayerNorm as one kernel."""
        tape, work = self.tape, self.work
        trains = work.full if trained is None else trained
        if layer.norm == "centred":
            return self._centred(x, layer, trains)
        if layer.norm != "rms":
            exact = layer.norm == "plain"  # OLMo's casts to float32 itself, and back
            wide = FLOAT if exact or (work.casts and work.norms_in_float32) else x.width
            taken = tape.cast(x, wide)
            made = tape.make(x.elements, wide, (taken,), saves=(taken,))
            return tape.cast(made, x.width) if exact else made
        if self.how.norm == "fused":
            return tape.make(x.elements, x.width, (x,), saves=(x,))
        wide32 = tape.cast(x, FLOAT)
        squares = tape.make(wide32.elements, FLOAT, (wide32,), saves=(wide32,), back=wide32.bytes)
        inverse = tape.make(x.elements / layer.hidden, FLOAT, (squares,))
        normed = tape.make(x.elements, FLOAT, (wide32, inverse), saves=(wide32, inverse), back=wide32.bytes)
        back = tape.cast(normed, x.width)
        saves = (back,) if trains else ()
        return tape.make(x.elements, x.width, (back,), saves=saves, trains=trains, back=x.bytes if trains else 0)

    def _centred(self, x: Tensor, layer: Layer, trains: bool) -> Tensor:
        """LayerNorm in float32 by single operations (transformers' modeling_cohere.py): x - mean is made twice."""
        tape = self.tape
        wide = tape.cast(x, FLOAT)
        centred = tape.make(x.elements, FLOAT, (wide,), passes=True)
        squares = tape.make(x.elements, FLOAT, (centred,), saves=(centred,), back=centred.bytes)
        inverse = tape.make(x.elements / layer.hidden, FLOAT, (squares,))
        again = tape.make(x.elements, FLOAT, (wide,), passes=True)
        normed = tape.make(x.elements, FLOAT, (again, inverse), saves=(again, inverse), back=again.bytes)
        saves = (normed,) if trains else ()
        scaled = tape.make(x.elements, FLOAT, (normed,), saves=saves, trains=trains, back=x.bytes if trains else 0)
        return tape.cast(scaled, x.width)

    def edited(self, x: Tensor) -> Tensor:
        """x + (W x + b - R x) Rᵀ in float32."""
        tape, low = self.tape, self.work.tokens * self.work.intervention
        exact = tape.cast(x, FLOAT)
        small = tape.make(low, FLOAT, (exact,), saves=(exact,), trains=True)
        edit = tape.make(x.elements, FLOAT, (small,), saves=(small,))
        return tape.cast(tape.add(exact, edit), x.width)

    def attention(self, x: Tensor, layer: Layer) -> Tensor:
        part = layer.attention
        if part is None:
            for linear in layer.others:
                x = self.linear(x, linear, self.work.tokens)
            return x
        query, key, value = self._latent(x, part) if part.kv_rank else self._queries(x, part)
        return self.linear(self._attended(query, key, value, part), part.linears[-1], self.work.tokens)

    def _queries(self, x: Tensor, part: Attention) -> tuple[Tensor, Tensor, Tensor]:
        tape, tokens = self.tape, self.work.tokens
        widths = (part.queries, part.keys, part.keys)
        if len(part.linears) == 2:
            made = self.linear(x, part.linears[0], tokens)
            states = [tape.make(tokens * width, made.width, (made,), view=True) for width in widths]
        else:
            states = [self.linear(x, linear, tokens) for linear in part.linears[:3]]
        turned = []
        for one in states[:2]:
            if part.norm:
                one = self.norm(one, Layer(hidden=part.head_dim))
            turned.append(self._turned(one, part.rotary_dim / part.head_dim))
        return turned[0], turned[1], states[2]

    def _turned(self, x: Tensor, share: float) -> Tensor:
        """x · cos + rotate(x) · sin; cos and sin have the hidden states' type, and are no one's to keep."""
        if not share:
            return x
        tape, width = self.tape, max(x.width, self.work.stream)
        turned = tape.make(x.elements * share, x.width, (x,))
        straight = tape.make(x.elements * share, width, (x,))
        crossed = tape.make(x.elements * share, width, (turned,))
        whole = tape.make(x.elements * share, width, (straight, crossed), passes=True)
        return whole if share == 1 else tape.make(x.elements, width, (whole, x))

    def _latent(self, x: Tensor, part: Attention) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values out of low ranks; the keys' rotary part is one for all heads."""
        tape, tokens = self.tape, self.work.tokens
        *makers, compress, expand, _out = part.linears
        query = self.linear(x, makers[0], tokens)
        if part.q_rank:
            query = self.linear(self.norm(query, Layer(hidden=part.q_rank)), makers[1], tokens)
        low = self.linear(x, compress, tokens)
        normed = self.norm(tape.make(tokens * part.kv_rank, low.width, (low,), view=True), Layer(hidden=part.kv_rank))
        both = self.linear(normed, expand, tokens)
        joined = tape.make(tokens * part.queries, query.width, (query,))
        key = tape.make(tokens * part.keys, both.width, (both,))
        value = tape.make(tokens * part.heads * part.value_dim, both.width, (both,), view=True)
        return joined, key, value

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, part: Attention) -> Tensor:
        tape, work = self.tape, self.work
        query, key, value = (tape.cast(states, work.width) for states in (query, key, value))
        made = work.tokens * part.heads * part.value_dim
        scores = part.heads * work.longest * work.width
        if self.how.repeats_keys and part.kv_heads < part.heads:
            key, value = (
                tape.make(states.elements * part.heads / part.kv_heads, states.width, (states,))
                for states in (key, value)
            )
        if part.broadcasts:
            return self._by_math(query, key, value, part)
        if self.how.attention == "products" and part.value_dim == part.head_dim:
            held = scores * min(BLOCK, work.longest)
            saves = (query, key, value)
            return tape.make(made, work.width, saves, saves=saves, forward=2 * held, back=3 * held)
        if self.how.attention == "math":
            likely = Tensor(scores / work.width * work.tokens, work.width)
            inputs = (query, key, value)
            back = 2 * likely.bytes
            return tape.make(made, work.width, inputs, saves=(*inputs, likely), forward=likely.bytes, back=back)
        sums = Tensor(part.heads * work.tokens, FLOAT)
        shared = part.kv_heads < part.heads and not self.how.repeats_keys
        back = FLOAT * work.tokens * part.queries + (2 * work.width * work.tokens * part.queries if shared else 0)
        inputs = (query, key, value)
        return tape.make(made, work.width, inputs, saves=(*inputs, sums), keeps=True, back=back)

    def _by_math(self, query: Tensor, key: Tensor, value: Tensor, part: Attention) -> Tensor:
        """Scaled queries, keys, values and all probabilities, in float32 (torch's attention.cpp, `_math`)."""
        tape, work = self.tape, self.work
        inputs = tuple(tape.cast(states, FLOAT) for states in (query, key, value))
        likely = Tensor(part.heads * work.longest * work.tokens, FLOAT)
        elements = work.tokens * part.heads * part.value_dim
        made = tape.make(
            elements, FLOAT, inputs, saves=(*inputs, likely), forward=2 * likely.bytes, back=2 * likely.bytes
        )
        return tape.cast(made, work.width)

    def mlp(self, x: Tensor, part: Mlp) -> Tensor:
        tape, tokens = self.tape, self.work.tokens
        *makers, down = part.linears
        if not part.gated:
            return self.linear(self._activated(self.linear(x, makers[0], tokens), part.activation), down, tokens)
        if len(makers) == 1:
            both = self.linear(x, makers[0], tokens)
            gate, up = (tape.make(tokens * part.inner, both.width, (both,), view=True) for _ in range(2))
        else:
            gate, up = (self.linear(x, linear, tokens) for linear in makers)
        if self.how.mlp == "fused":
            return self.linear(tape.make(up.elements, up.width, (gate, up), saves=(gate, up)), down, tokens)
        active = self._activated(gate, part.activation)
        return self.linear(tape.make(up.elements, up.width, (active, up), saves=(active, up)), down, tokens)

    def _activated(self, x: Tensor, activation: str) -> Tensor:
        tape = self.tape
        if activation in ("relu", "relu2"):
            made = tape.make(x.elements, x.width, (x,), keeps=True)
            return made if activation == "relu" else tape.make(x.elements, x.width, (made,), saves=(made,))
        if activation in CHAINED:
            wide = FLOAT if self.work.norms_in_float32 else x.width
            cubed = tape.make(x.elements, wide, (x,), saves=(Tensor(x.elements, wide) if wide != x.width else x,))
            bent = tape.make(x.elements, wide, (cubed,), keeps=True)
            half = tape.make(x.elements, x.width, (x,))
            one = tape.make(x.elements, wide, (bent,))
            return tape.make(x.elements, wide, (half, one), saves=(half, one))
        if activation == "quick_gelu":
            bent = tape.make(x.elements, x.width, (x,), keeps=True)
            return tape.make(x.elements, x.width, (x, bent), saves=(x, bent))
        return tape.make(x.elements, x.width, (x,), saves=(x,))

    def experts(self, x: Tensor, part: Experts) -> Tensor:
        """Tokens sorted by expert, two grouped products, weighted and put back (transformers' integrations/moe.py,
        grouped_mm_experts_forward)."""
        tape, work = self.tape, self.work
        rows = work.tokens * part.active
        chosen = tape.make(rows * part.hidden, x.width, (x,))
        taken = tape.cast(chosen, work.width)
        wide = part.inner * (2 if part.gated else 1)
        both = self._grouped(taken, rows * wide, part.count * part.hidden * wide)
        if part.gated:
            gate, up = (tape.make(rows * part.inner, both.width, (both,), view=True) for _ in range(2))
            active = self._activated(gate, part.activation)
            both = tape.make(up.elements, up.width, (active, up), saves=(active, up))
        else:
            both = self._activated(both, part.activation)
        down = self._grouped(both, rows * part.hidden, part.count * part.hidden * part.inner)
        weighted = tape.make(down.elements, down.width, (down,), saves=(down,))
        ordered = tape.make(weighted.elements, weighted.width, (weighted,))
        made = tape.make(work.tokens * part.hidden, x.width, (ordered,))
        return tape.add(made, self.mlp(x, part.shared)) if part.shared else made

    def _grouped(self, x: Tensor, elements: float, weights: int) -> Tensor:
        """A product of each expert's rows with its matrix."""
        if self.work.full:
            return self._by_weights(x, elements, weights)
        return self.tape.make(elements, self.work.width, (x,))
