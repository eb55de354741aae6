"""A model without weights, on fake tensors, for `plan --exact`: made of its config.json, trained like any other.

What has no fake kernel, or would be another on the device that is planned for, is stood in for by something that
allocates, keeps and lets go the same.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.autograd.function import once_differentiable
from transformers.integrations import moe

from toolbox.device import Device
from toolbox.plan import FinetunePlan
from toolbox.training import attention, logps, optim, products
from toolbox.training.attention import Spans

MIN_8BIT_ELEMENTS, BLOCK_8BIT = 4096, 256
"""Smaller weights keep moments of 32 bits; moments that share a scale (bitsandbytes/optim/optimizer.py)."""
NESTED_BLOCK = 256
"""Scales that share a scale (bitsandbytes/functional.py, quantize_4bit)."""
SIXTEEN = (torch.float16, torch.bfloat16)
IN_FLOAT32 = (
    "layer_norm", "group_norm", "softmax", "log_softmax", "softplus", "pow", "__pow__", "rsqrt", "exp", "log", "sum",
    "cumsum", "norm", "logsumexp",
)  # fmt: skip
"""What autocast computes in float32 on CUDA and not on a processor (aten/src/ATen/autocast_mode.h)."""


def filled(model: torch.nn.Module) -> list[torch.Tensor]:
    """Put fake tensors in the place of a model's meta ones; all of them, with what 4 bits need beside the weights.

    To be called under FakeTensorMode. Weights that are tied stay so.
    """
    made: dict[int, torch.Tensor] = {}
    replaced_ones: list[torch.Tensor] = []  # held, as `made` goes by what is unique only while it lives
    beside: list[torch.Tensor] = []
    for module in model.modules():
        if type(module).__name__ == "Linear4bit" and isinstance(module, torch.nn.Linear):
            beside += _quantised(module)
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        replaced_ones.append(tensor)
                        made[id(tensor)] = _like(tensor)
                        made[id(made[id(tensor)])] = made[id(tensor)]
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]
    return [*{id(tensor): tensor for tensor in made.values()}.values(), *beside]


def _like(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type != "meta":
        return tensor
    empty = torch.empty(tensor.shape, dtype=tensor.dtype)
    return torch.nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else empty


def _quantised(module: Any) -> list[torch.Tensor]:
    """Let a bitsandbytes linear hold a weight of 4 bits and compute by `Nf4Product`; returns its scales."""
    weight, shape = module.weight, module.weight.shape
    blocks = math.ceil(weight.numel() / weight.blocksize)
    if weight.compress_statistics:
        nested = torch.empty(math.ceil(blocks / NESTED_BLOCK))
        scales = [torch.empty(blocks, dtype=torch.uint8), nested, torch.empty(256), torch.empty(())]
    else:
        scales = [torch.empty(blocks)]
    packed = torch.empty(math.ceil(weight.numel() / 2), 1, dtype=weight.quant_storage)
    module._parameters["weight"] = torch.nn.Parameter(packed, requires_grad=False)

    def forward(x: torch.Tensor) -> torch.Tensor:
        """As bitsandbytes' Linear4bit."""
        if not module.compute_type_is_set:
            module.set_compute_type(x)
            module.compute_type_is_set = True
        taken = x if module.compute_dtype is None else x.to(module.compute_dtype)
        bias = None if module.bias is None else module.bias.to(taken.dtype)
        out: torch.Tensor = Nf4Product.apply(taken, packed, bias, scales[0], shape)  # type: ignore[no-untyped-call]
        return out.to(x.dtype)

    module.forward = forward
    return scales


class Nf4Product(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit: the weight is unpacked anew in each direction, and no input is kept."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, packed: torch.Tensor, bias: torch.Tensor | None, scales: torch.Tensor, shape: Any
    ) -> torch.Tensor:
        ctx.save_for_backward(packed)
        ctx.scales, ctx.shape = scales, shape
        return torch.nn.functional.linear(x, _unpacked(x, scales, shape), bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return gradient @ _unpacked(gradient, ctx.scales, ctx.shape), None, None, None, None


def _unpacked(like: torch.Tensor, scales: torch.Tensor, shape: Any) -> torch.Tensor:
    whole = scales if scales.dtype == torch.float32 else scales.float()
    del whole  # scales are unpacked first, and let go with this function's end
    return torch.empty(shape, dtype=like.dtype)


class EightBit(torch.optim.Optimizer):
    """What bitsandbytes' AdamW8bit keeps: moments of 8 bits with a scale for each block, and 32 bits for small
    weights."""

    def __init__(self, groups: Any, lr: float) -> None:
        super().__init__(groups, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None or self.state[weight]:
                    continue
                small = weight.numel() < MIN_8BIT_ELEMENTS
                dtype, blocks = (torch.float32, 0) if small else (torch.uint8, math.ceil(weight.numel() / BLOCK_8BIT))
                for moment in ("1", "2"):
                    self.state[weight] |= {
                        f"state{moment}": torch.empty_like(weight, dtype=dtype),
                        f"absmax{moment}": torch.empty(blocks),
                    }


def _eight_bit(named_parameters: optim.Named, plan: FinetunePlan) -> torch.optim.Optimizer:
    return EightBit(optim._groups(named_parameters, plan), lr=plan.training.learning_rate)


class FlashAttention(torch.autograd.Function):
    """What flash attention takes: arXiv:2307.08691, and csrc/flash_attn/flash_api.cpp of flash-attn 2 for what is
    allocated.

    Query, key, value, [..., tokens, heads, head_dim], output and the logsumexp of each query are kept; going backward,
    the query's gradient is summed in float32, and keys that several heads share have a gradient for each before it is
    summed.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        ctx.save_for_backward(query, key, value, out, torch.empty(query.shape[:-1]))
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        query, key, value, _out, _sums = ctx.saved_tensors
        to_each = [torch.empty_like(states, memory_format=torch.contiguous_format) for states in (query, key, value)]
        summed = torch.empty(query.shape), torch.empty(query.shape[:-1])
        if query.shape[-2] != key.shape[-2]:
            each = [torch.empty(*key.shape[:-2], *query.shape[-2:], dtype=key.dtype) for _ in range(2)]
            del each
        del summed
        return tuple(to_each)


class GroupedProduct(torch.autograd.Function):
    """torch's grouped_mm, whose fake kernel takes bfloat16 only: x [tokens, inputs] by weights [experts, inputs,
    outputs]. Of both that is kept which the other's gradient needs."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        to_x, to_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if to_weight else None, weight if to_x else None)
        ctx.experts = weight.shape[0]
        return x.new_empty(x.shape[0], weight.shape[-1])

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        return (
            None if weight is None else gradient.new_empty(gradient.shape[0], weight.shape[1]),
            None if x is None else gradient.new_empty(ctx.experts, x.shape[1], gradient.shape[1]),
        )


def _grouped(x: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = GroupedProduct.apply(x.to(weight.dtype), weight)  # type: ignore[no-untyped-call]
    return out


def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, within: Spans, scaling: float | None
) -> torch.Tensor:
    seen: torch.Tensor = FlashAttention.apply(query, key, value)  # type: ignore[no-untyped-call]
    return seen


def _cuda_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None, *args: Any,
    **options: Any,
) -> torch.Tensor:  # fmt: skip
    """scaled_dot_product_attention of [rows, heads, tokens, head_dim] by the kernel that CUDA takes in 16 bits.

    Flash attention wants no mask and, unless `enable_gqa`, as many heads of keys as of queries; it takes dropout as it
    is (aten/src/ATen/native/transformers/cuda/sdp_utils.cpp). A processor has dropout, and heads that are broadcast, by
    single products.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    alike = query.shape[1] == key.shape[1] or options.get("enable_gqa")
    flat = query.shape[-1] == key.shape[-1] == value.shape[-1] <= attention.MOST_HEAD_DIM
    if attn_mask is not None or dtype not in SIXTEEN or not (alike and flat):
        return SDPA(query, key, value, attn_mask, *args, **options)
    taken = (states.to(dtype).transpose(1, 2) for states in (query, key, value))
    seen: torch.Tensor = FlashAttention.apply(*taken)  # type: ignore[no-untyped-call]
    return seen.transpose(1, 2)


SDPA = torch.nn.functional.scaled_dot_product_attention
aten = torch.ops.aten
BY_PLACES = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Fake(FakeTensorMode):
    """Fake tensors; whoever asks one for its value is told 1, or true: a loss is finite, a mask hides nothing."""

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in BY_PLACES:
            args = (args[0], [places for index in args[1] for places in _places(index)], *args[2:])
        if func is aten.nonzero.default:
            return torch.zeros(args[0].numel(), args[0].ndim, dtype=torch.long)
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return 1.0 if dtype.is_floating_point else dtype is torch.bool or 1
        return super().dispatch(func, types, args, kwargs)  # type: ignore[no-untyped-call]


def _places(index: Any) -> Iterable[Any]:
    """Of a mask that is real, as the places of a batch's labels are, its places: so many are taken."""
    if not isinstance(index, torch.Tensor) or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return [index]
    with unset_fake_temporarily():
        return index.nonzero().unbind(1)


def _fused_dropout(dropout: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """As on CUDA, where a mask of a byte is kept; on a processor it is of the input's type
    (aten/src/ATen/native/Dropout.cpp)."""

    def dropped(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
        if inplace or not training or not 0 < p < 1:
            return dropout(input, p, training, inplace)
        return torch.native_dropout(input, p, training)[0]

    return dropped


def _in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """As autocast on CUDA has `function` computed."""

    def computed(*args: Any, **options: Any) -> Any:
        if not torch.is_autocast_enabled("cpu") or options.get("dtype"):
            return function(*args, **options)
        return function(*map(_float32, args), **{name: _float32(value) for name, value in options.items()})

    return computed


def _cuda_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """Its mask is a byte a number, as CUDA's kernel keeps; a processor's has the type of what is dropped."""
    return torch.native_dropout(input, p, True)[0] if training and p else input


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in SIXTEEN else value


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """While entered, `owner.name` is `value`."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def as_on(device: Device, dtype: str) -> Iterator[None]:
    """While entered, fake tensors, which all lie on a processor, are treated as `device` would treat real ones.

    On a processor the loop's own functions take part, attention with its largest block only: the others allocate less.
    """
    sixteen, own = dtype != "float32", products._blocks

    def largest(queries: Any, keys: Any) -> Any:
        places = list(own(queries, keys))
        return [max(places, key=lambda place: (place[0].stop - place[0].start) * (place[1].stop - place[1].start))]

    with ExitStack() as stack:
        for name in ("adamw_8bit", "paged_adamw_8bit"):
            stack.enter_context(replaced(optim, name, _eight_bit))
        stack.enter_context(replaced(moe, "_grouped_mm", _grouped))
        if device.kind == "cpu":
            stack.enter_context(replaced(products, "_blocks", largest))
        else:
            kernel = _flash if device.kind == "cuda" and device.bf16 and sixteen else None
            stack.enter_context(replaced(attention, "kernel_for", lambda kind, dtype: kernel))
            if kernel:
                stack.enter_context(replaced(torch.nn.functional, "scaled_dot_product_attention", _cuda_attention))
            stack.enter_context(replaced(logps, "PIECE", {}))
            stack.enter_context(replaced(torch.nn.functional, "dropout", _fused_dropout(torch.nn.functional.dropout)))
            stack.enter_context(replaced(torch.nn.functional, "dropout", _cuda_dropout))
            if sixteen:
                for owner in (torch.nn.functional, torch, torch.Tensor):
                    for name in IN_FLOAT32:
                        if function := vars(owner).get(name) or (owner is torch.Tensor and getattr(owner, name, None)):
                            stack.enter_context(replaced(owner, name, _in_float32(function)))
            before = torch.is_autocast_enabled("cuda")
            stack.callback(torch.set_autocast_enabled, "cuda", before)
            torch.set_autocast_enabled("cuda", sixteen)  # peft asks for this one
        yield
