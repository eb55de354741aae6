"""Rows of every merged weight, recomputed in float64 from what peft loaded: the sharp half of a merge's proof.

Logits of rounded weights differ for right and wrong merges alike, and the more so the deeper a model is. A weight is
either base + scaling · B·A (arXiv:2106.09685, 4.1) rounded once, or wrong.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
import torch
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper

ROWS = 16
"""Of each tensor, evenly spread."""


class Found(msgspec.Struct, frozen=True):
    """What recomputing said: tensors compared, those of them that the adapter changes, and names of wrong ones."""

    tensors: int
    adapted: int
    wrong: list[str]
    unknown: int
    """Tensors of adapted modules whose sum is not known here (DoRA, whole modules, other tuners)."""


class Rows(NamedTuple):
    """Rows of a tensor as they should be, and how far rounding may take each number from that."""

    expected: torch.Tensor
    allowed: torch.Tensor


def taken(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Those rows of all parameters of a merged model, in memory of their own."""
    found = model.named_parameters(remove_duplicate=False)
    return {name: _rows(parameter).detach().cpu().clone() for name, parameter in found}


def compare(model: Any, merged: dict[str, torch.Tensor]) -> Found:
    """Compare `merged`, as `taken` gave them, with base + adapter, a model as PeftModel loads it, not merged."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    sums = dict(_sums(inner))
    changed = tuple(name for name, part in inner.named_modules() if _changes(part))
    tensors, adapted, unknown, wrong = 0, 0, 0, []
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        plain = name.replace(".base_layer", "")
        if plain not in merged and name.startswith(changed):
            continue  # the adapter's own
        if plain in sums and plain in merged:
            add = _biased if plain.endswith(".bias") else _updated
            known = add(parameter, *sums[plain], merged[plain].dtype)
            adapted += 1
        elif name.startswith(changed):
            unknown += 1
            continue
        else:
            exact = _rows(parameter).detach().cpu()
            known = Rows(exact.double(), torch.zeros(()))
        tensors += 1
        if plain not in merged or not _equal(merged[plain], known):
            wrong.append(plain)
    return Found(tensors, adapted, wrong, unknown)


def _equal(merged: torch.Tensor, known: Rows) -> bool:
    return merged.shape == known.expected.shape and bool(
        ((merged.double() - known.expected).abs() <= known.allowed).all()
    )


def _changes(part: Any) -> bool:
    return isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)


def _sums(model: Any) -> Iterator[tuple[str, tuple[Any, str]]]:
    """The parameters that a plain LoRA is added to, with its layer and the adapter's name."""
    for name, part in model.named_modules():
        if not isinstance(part, LoraLayer) or isinstance(part, AdaLoraLayer):
            continue
        adapter = part.active_adapters[0]
        attribute = part.parameter_name if isinstance(part, ParamWrapper) else "weight"
        own, base = name.replace(".base_layer", ""), part.get_base_layer()
        known = base._parameters.get(attribute)
        plain = adapter in part.scaling and adapter not in part.lora_variant and getattr(base, "groups", 1) == 1
        if plain and known is not None and (known.ndim in (2, 4) or isinstance(part, ParamWrapper)):
            yield f"{own}.{attribute}", (part, adapter)
            yield f"{own}.bias", (part, adapter)


def _biased(bias: torch.Tensor, layer: Any, adapter: str, dtype: torch.dtype) -> Rows:
    """A bias, with the one of B where that has one."""
    base, added = bias.detach().cpu().double(), 0.0
    if layer.lora_bias.get(adapter):
        added = layer.lora_B[adapter].bias.detach().cpu().double() * layer.scaling[adapter]
    expected, rounded = base + added, torch.finfo(dtype)
    return Rows(expected, rounded.eps * (expected.abs() + (expected - base).abs()) + rounded.tiny)


def _updated(parameter: torch.Tensor, layer: Any, adapter: str, dtype: torch.dtype) -> Rows:
    """Rows of base + scaling · B·A. Each number may be rounded twice, as update and as sum, and summed in float32."""
    embedding = adapter in layer.lora_embedding_A
    a = layer.lora_embedding_A[adapter] if embedding else layer.lora_A[adapter].weight
    b = layer.lora_embedding_B[adapter] if embedding else layer.lora_B[adapter].weight
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    base = _rows(_dequantised(parameter, dtype)).detach().cpu().double()
    if parameter.ndim == 3:
        update, sizes = _of_experts(layer, parameter, a, b)
    else:
        turned = embedding or getattr(layer, "fan_in_fan_out", False)
        left, right = (a.T, b.T) if turned else (b.flatten(1), a.flatten(1))
        left = left[_places(len(left))]
        update, sizes = left @ right, left.abs() @ right.abs()
    update, sizes = update * layer.scaling[adapter], sizes * abs(layer.scaling[adapter])
    expected, most = base + update, torch.finfo(dtype)
    single = torch.finfo(torch.float32).eps * (a.shape[0] + 2) * (sizes + base.abs())
    return Rows(expected, 0.51 * most.eps * (expected.abs() + update.abs()) + single + most.tiny)


def _of_experts(
    layer: Any, parameter: torch.Tensor, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of fused experts (experts × … × …), whose A and B hold those of all experts (peft's ParamWrapper)."""
    experts, middle, _last = parameter.shape
    a, b = a.reshape(experts, -1, a.shape[-1]), b.reshape(b.shape[0], -1, experts)
    places = [divmod(int(place), middle) for place in _places(experts * middle)]
    if layer._did_swap_in_out_features:
        pairs = [(b[row, :, expert], a[expert]) for expert, row in places]
    else:
        pairs = [(a[expert, :, row], b[:, :, expert].T) for expert, row in places]
    updates = [left @ right for left, right in pairs]
    return torch.stack(updates), torch.stack([left.abs() @ right.abs() for left, right in pairs])


def _dequantised(parameter: Any, dtype: torch.dtype) -> torch.Tensor:
    if type(parameter).__name__ != "Params4bit":
        return parameter
    from peft.utils.integrations import dequantize_bnb_weight

    dequantised: torch.Tensor = dequantize_bnb_weight(parameter)
    return dequantised.to(dtype)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """ROWS rows of the last dimension, or of a convolution's outputs; all of what has no rows."""
    if tensor.ndim < 2:
        return tensor
    flat = tensor.flatten(0, -2) if tensor.ndim == 3 else tensor.flatten(1)
    return flat[_places(len(flat)).to(tensor.device)]


def _places(rows: int) -> torch.Tensor:
    return torch.linspace(0, rows - 1, min(rows, ROWS), dtype=torch.float64).round().long()
