"""The moments of a training step that may be its highest: what is in memory at each, by part."""

from collections.abc import Iterator
from itertools import groupby

import msgspec

from toolbox.memory.implementation import Implementation
from toolbox.memory.layers import FLOAT, Work, head_tape, layer_tape
from toolbox.memory.states import States
from toolbox.memory.tape import Tape
from toolbox.networks import Layer, Network

Parts = dict[str, float]


class Step(msgspec.Struct, kw_only=True, frozen=True):
    """What a micro-batch, a method and its settings make of a network."""

    network: Network
    work: Work
    how: Implementation
    labels: int
    """Places at which logits are made."""
    classes: int
    """Logits at each place: the vocabulary, or 1 of a reward model."""
    depth_trained: int
    """Layers that are trained, or through which gradients flow, from the last one on."""
    full_layers: int
    """Layers whose own weights are trained."""
    head_trained: bool
    embedding_trained: bool
    checkpointing: bool
    padded: bool = False
    """Whether logits are made at all places first, and those at labels picked out."""


def highest(step: Step, states: States) -> Parts:
    """The parts at the moment when their sum is the largest."""
    return max(moments(step, states), key=lambda parts: sum(parts.values()))


def moments(step: Step, states: States) -> Iterator[Parts]:
    """Forward's end, the loss, each layer going backward, the optimizer."""
    standing = {"gradients": float(states.gradients) if step.work.accumulates else 0.0}
    layers = _layers(step)
    inputs = step.work.tokens * step.network.hidden * step.work.stream
    kept = [inputs if step.checkpointing else tape.forward()[0] for tape in layers]
    copies = _cached_copies(step) if step.checkpointing else 0.0
    total = sum(kept)
    for tape in {id(tape): tape for tape in layers}.values():
        before = total - (inputs if step.checkpointing else tape.forward()[0])
        yield {**standing, "activations": before + tape.forward(not step.checkpointing)[1] + copies}
    yield from _at_the_head(step, standing, total, copies)
    # A tied embedding's gradient waits for that of its other use, and only then joins an earlier micro-batch's.
    shared = step.head_trained and step.embedding_trained and step.network.tied
    share = states.gradient_share
    waits = _head_bytes(step) * (1 if shared else share) if shared or not step.work.accumulates else 0.0
    gradients = standing["gradients"] + waits
    below = total
    for tape, group in groupby(reversed(layers)):
        count = len(list(group))
        keeps = inputs if step.checkpointing else tape.forward()[0]
        anew, (stays, back) = tape.forward()[1], tape.backward(inputs)
        most = max(anew + inputs, back) if step.checkpointing else back
        for done in {0, count - 1}:  # between them, what is kept and what is made change evenly
            yield {"gradients": gradients + done * share * stays, "activations": below - (done + 1) * keeps + most}
        below, gradients = below - count * keeps, gradients + count * share * stays
    whole = float(states.gradients)
    if step.embedding_trained and not step.how.gradients_in_backward:
        made = float(step.network.vocab * step.network.hidden * FLOAT)
        times = (2 if shared else 0) + (1 if step.work.accumulates or share < 1 else 0)
        yield {"gradients": whole, "activations": times * made}
    yield {"gradients": whole, "activations": float(states.optimizer_scratch)}


def _at_the_head(step: Step, standing: Parts, kept: float, copies: float) -> Iterator[Parts]:
    """The logits, their loss, and the head going backward."""
    head = _head(step)
    size = step.labels * step.classes * step.work.width
    made = size * (2 if step.padded else 1)
    held, most = head.forward()
    unscaled = size if step.network.head_scaled else 0.0
    yield {**standing, "activations": kept + copies + max(0.0, most - size), "logits": made + unscaled}
    there, back = _loss_bytes(step, size)
    yield {**standing, "activations": kept + held, "logits": made + there}
    if step.padded:  # the gradient of those picked out is put into one of all
        yield {**standing, "activations": kept + held, "logits": made + size}
    weights, highest_back = head.backward(size)
    yield {**standing, "activations": kept + held, "logits": made + back}
    yield {
        "gradients": standing["gradients"] + weights,
        "activations": kept + highest_back - size - weights,
        "logits": made + unscaled,
    }


def _loss_bytes(step: Step, size: float) -> tuple[float, float]:
    """What the loss takes beside the logits, going forward and back."""
    if step.how.loss != "logps":
        return (step.how.loss_copies * size / step.work.width,) * 2
    rows = max(1, step.how.loss_piece // step.classes)
    if step.work.width == FLOAT:
        return FLOAT * min(step.labels, rows) * step.classes, 0
    pieces = FLOAT * min(step.labels, 2 * rows) * step.classes  # the next is made before the last is let go
    return pieces, pieces


def _layers(step: Step) -> list[Tape]:
    """A tape for each layer, those of a kind being one; the first that is trained gives its input no gradient."""
    found: list[Tape] = []
    known: dict[tuple[int, bool, bool], Tape] = {}
    depth = step.network.depth
    kinds = [kind for kind in step.network.layers for _ in range(kind.count)]
    for index, kind in enumerate(kinds):
        trains = index >= depth - step.depth_trained
        full = step.work.full and index >= depth - step.full_layers
        graded = step.embedding_trained or (trains and index > depth - step.depth_trained)
        key = (id(kind), graded, full or not trains)
        if key not in known:
            known[key] = _tape(kind, step, full, trains, graded)
        found.append(known[key])
    return found


def _tape(kind: Layer, step: Step, full: bool, trains: bool, graded: bool) -> Tape:
    targets = step.work.targets if trains else frozenset()
    return layer_tape(kind, msgspec.structs.replace(step.work, full=full, targets=targets), step.how, graded)


def _head(step: Step) -> Tape:
    network = msgspec.structs.replace(step.network, vocab=step.classes)
    return head_tape(network, step.work, step.how, step.labels, step.head_trained)


def _head_bytes(step: Step) -> float:
    size = FLOAT if step.how.trained_weights == FLOAT else step.work.width
    return float(size * step.classes * step.network.hidden) if step.head_trained else 0.0


def _cached_copies(step: Step) -> float:
    """16-bit copies that autocast holds until the forward pass ends, though checkpointing keeps none of them."""
    if not (step.how.autocast and step.work.casts and step.work.full):
        return 0.0
    kinds = [kind for kind in step.network.layers for _ in range(kind.count)][-step.full_layers :]
    linears = sum(linear.inputs * linear.outputs for kind in kinds for linear in kind.linears)
    experts = sum(kind.experts.routed for kind in kinds if kind.experts)
    return float(step.work.width * (linears + experts))
