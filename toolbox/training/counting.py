"""Counts the bytes of tensors that live, by part, while it is entered; `plan --exact` and the benches read its peak."""

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PARTS = ("weights", "adapter", "gradients", "optimizer", "activations", "logits")
"""As in the memory model's `parts_bytes`."""
WITHIN = {torch.ops.aten.logsumexp.default: "logits"}
"""Operations that hold a copy of their input while they run, which no dispatch shows, and its part: exp(x - max)
(aten/src/ATen/native/ReduceOps.cpp, logsumexp_out_impl)."""


class Live(TorchDispatchMode):
    """While entered: what every operation makes, from its making until its storage is let go; views count once.

    `parts`: live bytes by part. `peak_bytes`, `peak_parts` and `peak_at` (operation, phase): of the highest moment.
    Whoever updates the weights says so as `phase`; else it is forward or backward. What an operation allocates and lets
    go within its own kernel is not seen. torch.distributed's MemTracker does alike, but fails on frozen weights.
    """

    def __init__(self, vocab_size: int, rounded_to: int = 1, heed_stop: Callable[[], None] = lambda: None) -> None:
        """`rounded_to`: bytes that the allocator rounds up to (512 on CUDA). `heed_stop` may raise, at any
        operation."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.parts = dict.fromkeys(PARTS, 0)
        self.phase = ""
        self._vocab_size, self._rounded_to, self._heed_stop = vocab_size, rounded_to, heed_stop
        self._known: dict[int, tuple[str, int, weakref.ref[Any]]] = {}
        self._hooks: list[Any] = []
        self._bytes = 0
        self.forget_peak()

    def forget_peak(self) -> None:
        """Look for the highest moment from now on."""
        self.peak_bytes, self.peak_parts, self.peak_at = self._bytes, dict(self.parts), ("", "")

    def note(self, tensors: Iterable[torch.Tensor], part: str) -> None:
        """Count what was made before, or what is something else from now on."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._gone(storage._cdata)
            self._add(storage, part)

    def watch(self, trained: Iterable[torch.nn.Parameter]) -> None:
        """Count the gradients of `trained` as such once they are whole."""
        self._hooks += [weight.register_post_accumulate_grad_hook(self._has_gradient) for weight in trained]

    def close(self) -> None:
        """Count no gradients any more."""
        for hook in self._hooks:
            hook.remove()

    def _has_gradient(self, weight: torch.Tensor) -> None:
        if weight.grad is not None:
            self.note([weight.grad], "gradients")

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and what would see to that takes as long as the counting."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # fake tensors are asked for theirs twice an operation
            return func(*args)
        self._heed_stop()
        made = func(*args, **(kwargs or {}))
        if part := WITHIN.get(func):
            self._see(str(func), args[0].numel() * args[0].element_size(), part)
        for tensor in [made] if isinstance(made, torch.Tensor) else tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._add(storage, self._part(tensor, func, args))
                    self._see(str(func))
        return made

    def _see(self, operation: str, more: int = 0, part: str = "") -> None:
        """Whether this is the highest moment, with `more` bytes of `part`."""
        if self._bytes + more > self.peak_bytes:
            self.peak_bytes, self.peak_parts = self._bytes + more, dict(self.parts)
            self.peak_at = (operation, self.phase or _direction())
            if more:
                self.peak_parts[part] += more

    def _part(self, made: torch.Tensor, func: Any, args: Any) -> str:
        if self.phase == "optimizer":
            return "optimizer"
        if func is torch.ops.aten._to_copy.default and args[0].requires_grad is False:
            source = self._known.get(args[0].untyped_storage()._cdata)
            if source and source[0] in ("weights", "adapter"):  # autocast's copies
                return source[0]
        return "logits" if made.ndim and made.shape[-1] == self._vocab_size else "activations"

    def _add(self, storage: torch.UntypedStorage, part: str) -> None:
        key, size = storage._cdata, -(-storage.nbytes() // self._rounded_to) * self._rounded_to
        self._known[key] = part, size, weakref.ref(storage, partial(self._let_go, key))
        self.parts[part] += size
        self._bytes += size

    def _let_go(self, key: int, gone: weakref.ref[Any]) -> None:
        if key in self._known and self._known[key][2] is gone:
            self._gone(key)

    def _gone(self, key: int) -> None:
        if known := self._known.pop(key, None):
            self.parts[known[0]] -= known[1]
            self._bytes -= known[1]


def _direction() -> str:
    return "forward" if torch._C._current_autograd_node() is None else "backward"  # type: ignore[attr-defined]
