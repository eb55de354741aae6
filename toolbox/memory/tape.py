"""What is in memory while operations run forward and backward, in bytes: a tape of operations without numbers.

Each operation says what it makes, what it keeps for its backward pass, and what it needs for a moment. The rest is
bookkeeping, as autograd does it: a tensor lives until its last reader has run, a kept one until its gradient is made,
and gradients of a tensor that several operations read are summed.
"""

from collections.abc import Sequence


class Tensor:
    """`elements` numbers of `width` bytes; a view has its `owner`'s memory. `graded`: it gets a gradient."""

    __slots__ = ("elements", "graded", "owner", "width")

    def __init__(self, elements: float, width: int, owner: "Tensor | None" = None, graded: bool = True) -> None:
        self.elements, self.width, self.graded = elements, width, graded
        self.owner: Tensor = owner.owner if owner else self

    @property
    def bytes(self) -> float:
        return self.elements * self.width


class _Gradient:
    """Of one tensor or, where an operation hands it on as it is, of several."""

    __slots__ = ("bytes", "holders")

    def __init__(self, size: float) -> None:
        self.bytes, self.holders = size, 0


class _Operation:
    __slots__ = ("back", "forward", "inputs", "made", "passes", "saves", "stays")

    def __init__(
        self,
        inputs: tuple[Tensor, ...],
        made: Tensor,
        saves: tuple[Tensor, ...],
        passes: bool,
        forward: float,
        back: float,
        stays: float,
    ) -> None:
        self.inputs, self.made, self.saves, self.passes = inputs, made, saves, passes
        self.forward, self.back, self.stays = forward, back, stays


class Tape:
    """Operations in the order in which they run; `make` adds one."""

    def __init__(self) -> None:
        self._operations: list[_Operation] = []
        self._found: dict[tuple[str, float], tuple[float, float]] = {}
        """What was asked before: layers of a kind share a tape."""

    def make(
        self,
        elements: float,
        width: int,
        inputs: Sequence[Tensor],
        *,
        saves: Sequence[Tensor] = (),
        keeps: bool = False,
        passes: bool = False,
        view: bool = False,
        trains: bool = False,
        forward: float = 0,
        back: float = 0,
        stays: float = 0,
    ) -> Tensor:
        """What an operation on `inputs` makes; it has a gradient where one of them has, or where it `trains` weights.

        `saves`: kept for its backward pass; `keeps`: what it makes is, too. `passes`: its gradient is handed on as it
        is. `view`: it has the first input's memory. `forward`, `back`: bytes that it needs for a moment, going there or
        back. `stays`: bytes of weights' gradients that are there from then on.
        """
        made = Tensor(elements, width, inputs[0] if view else None, trains or any(one.graded for one in inputs))
        kept = () if not made.graded else (*saves, made) if keeps else tuple(saves)
        self._operations.append(_Operation(tuple(inputs), made, kept, passes, forward, back, stays))
        return made

    def cast(self, tensor: Tensor, width: int) -> Tensor:
        """`tensor` in another type; itself where it has that type."""
        return tensor if tensor.width == width else self.make(tensor.elements, width, (tensor,))

    def add(self, left: Tensor, right: Tensor) -> Tensor:
        return self.make(left.elements, max(left.width, right.width), (left, right), passes=left.width == right.width)

    def forward(self, keeping: bool = True) -> tuple[float, float]:
        """(bytes kept at the end, bytes at the highest moment), of what the operations make; their own input counts
        where it is kept. Not `keeping`: as under checkpointing."""
        if ("forward", keeping) not in self._found:
            self._found["forward", keeping] = self._forward(keeping)
        return self._found["forward", keeping]

    def _forward(self, keeping: bool) -> tuple[float, float]:
        last = {tensor.owner: index for index, step in enumerate(self._operations) for tensor in step.inputs}
        kept = {tensor.owner for step in self._operations for tensor in step.saves} if keeping else set()
        begin = {tensor for tensor in kept if tensor not in {step.made.owner for step in self._operations}}
        begin = {tensor for tensor in begin if tensor in last}
        live, present = sum(tensor.bytes for tensor in begin), set(begin)
        highest = live
        for index, step in enumerate(self._operations):
            for tensor in (step.made, *(step.saves if keeping else ())):
                if tensor.owner not in present:
                    present.add(tensor.owner)
                    live += tensor.owner.bytes
            highest = max(highest, live + step.forward)
            for tensor in {tensor.owner for tensor in step.inputs}:
                if last[tensor] == index and tensor in present and tensor not in kept:
                    present.discard(tensor)
                    live -= tensor.bytes
        return sum(tensor.bytes for tensor in kept), highest

    def backward(self, above: float) -> tuple[float, float]:
        """(bytes of gradients of weights, bytes at the highest moment), what is kept and the gradient of `above` bytes
        that comes in included."""
        if ("backward", above) not in self._found:
            self._found["backward", above] = self._backward(above)
        return self._found["backward", above]

    def _backward(self, above: float) -> tuple[float, float]:
        readers: dict[Tensor, int] = {}
        for step in self._operations:
            for tensor in {tensor.owner for tensor in step.saves}:
                readers[tensor] = readers.get(tensor, 0) + 1
        gradients: dict[Tensor, _Gradient] = {}
        self._give(gradients, self._operations[-1].made, _Gradient(above))
        live, weights = sum(tensor.bytes for tensor in readers) + above, 0.0
        highest = live
        for step in reversed(self._operations):
            come = gradients.pop(step.made, None)
            if come is None:
                continue
            come.holders -= 1
            for tensor in (tensor for tensor in dict.fromkeys(step.inputs) if tensor.graded):
                live, highest = self._add(gradients, tensor, step, come, live, highest)
            highest = max(highest, live + step.back + step.stays)
            live, weights = live + step.stays, weights + step.stays
            if not come.holders:
                live -= come.bytes
            for tensor in {tensor.owner for tensor in step.saves}:
                readers[tensor] -= 1
                if not readers[tensor]:
                    live -= tensor.bytes
        return weights, highest

    def _add(
        self,
        gradients: dict[Tensor, _Gradient],
        tensor: Tensor,
        step: _Operation,
        come: _Gradient,
        live: float,
        highest: float,
    ) -> tuple[float, float]:
        """Give `tensor` its gradient out of `step`, summed with what it has; what is live then, and at the most."""
        view = step.made.owner is tensor.owner
        if view and step.made.bytes < tensor.bytes:  # a part of it: the gradients of all parts are joined in a new one
            if tensor not in gradients:
                self._give(gradients, tensor, _Gradient(tensor.bytes))
                live += tensor.bytes
                highest = max(highest, live + step.made.bytes)
            return live, highest
        handed = step.passes or view
        new = come if handed else _Gradient(tensor.bytes)
        live += 0 if handed else new.bytes
        highest = max(highest, live + step.back)
        before = gradients.get(tensor)
        if before is None:
            self._give(gradients, tensor, new)
            return live, highest
        if before.holders == 1:  # it is summed in place
            return live - (0 if handed else new.bytes), highest
        if not handed and new.holders == 0:
            before.holders -= 1
            self._give(gradients, tensor, new)
            return live, highest
        summed = _Gradient(tensor.bytes)
        before.holders -= 1
        self._give(gradients, tensor, summed)
        return live + summed.bytes, max(highest, live + summed.bytes)

    @staticmethod
    def _give(gradients: dict[Tensor, _Gradient], tensor: Tensor, gradient: _Gradient) -> None:
        gradient.holders += 1
        gradients[tensor] = gradient
