"""LoRA's forward and backward as one operation, on processors; tuners/adapters.py puts it into peft's layers.

peft computes W x + s B A x as a chain of operations, each of which keeps its input and, over a 16-bit base, copies it
to float32 and back. One operation keeps x and A x alone, and adds into the products in place.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable


class AdaptedLinear(torch.autograd.Function):
    """x Wᵀ + bias + scaling · x Aᵀ Bᵀ (arXiv:2106.09685, equation 3), W and bias frozen.

    x [..., inputs], W [outputs, inputs], A [r, inputs], B [outputs, r]; products are in W's dtype, as under autocast.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        x_cast = x.to(weight.dtype)
        rows = x_cast.reshape(-1, x.shape[-1])
        low = rows @ a.to(weight.dtype).T
        out = torch.nn.functional.linear(x_cast, weight, bias)  # no view: a model may add to it in place
        out.view(-1, out.shape[-1]).addmm_(low, b.to(weight.dtype).T, alpha=scaling)
        ctx.save_for_backward(rows, weight, a, b, low)
        ctx.scaling, ctx.dtype = scaling, x.dtype
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight, a, b, low = ctx.saved_tensors
        above = gradient.reshape(-1, gradient.shape[-1]).to(weight.dtype)
        to_low = (above @ b.to(weight.dtype)).mul_(ctx.scaling)
        to_x = to_a = to_b = None
        if ctx.needs_input_grad[0]:
            to_x = (above @ weight).addmm_(to_low, a.to(weight.dtype))
            to_x = to_x.to(ctx.dtype).reshape(*gradient.shape[:-1], -1)
        if ctx.needs_input_grad[3]:
            to_a = (to_low.T @ rows).to(a.dtype)
        if ctx.needs_input_grad[4]:
            to_b = (low.T @ above).mul_(ctx.scaling).T.to(b.dtype)
        return to_x, None, None, to_a, to_b, None


def adapt(model: torch.nn.Module) -> int:
    """Let every plain LoRA linear of `model` on a processor compute by `AdaptedLinear`; returns how many there are."""
    from peft.tuners.lora import Linear

    plain = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    for module in plain:
        module.forward = _Plain(module)  # type: ignore[method-assign]
    return len(plain)


def _is_plain(module: Any) -> bool:
    """Whether peft would compute nothing but the formula: one adapter, no dropout, no variant such as DoRA."""
    base, names = module.base_layer, list(module.lora_A)
    return (
        type(base) is torch.nn.Linear
        and base.weight.device.type == "cpu"
        and not any(weight.requires_grad for weight in base.parameters())
        and names == list(module.active_adapters)
        and len(names) == 1
        and not module.lora_variant
        and isinstance(module.lora_dropout[names[0]], torch.nn.Identity)
        and not any(module.lora_bias.values())
        and not getattr(module, "fan_in_fan_out", False)
    )


class _Plain:
    """A layer's forward; peft's own where the adapter is switched off, merged, or chosen by row."""

    def __init__(self, module: Any) -> None:
        self._module, self._general = module, module.forward

    def __call__(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        module = self._module
        weight = module.base_layer.weight
        arithmetic = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if arguments or options or module.disable_adapters or module.merged or weight.dtype != arithmetic:
            general: torch.Tensor = self._general(x, *arguments, **options)
            return general
        (name,) = module.lora_A
        a, b = module.lora_A[name].weight, module.lora_B[name].weight
        adapted = AdaptedLinear.apply
        out: torch.Tensor = adapted(x, weight, module.base_layer.bias, a, b, module.scaling[name])  # type: ignore[no-untyped-call]
        return out
