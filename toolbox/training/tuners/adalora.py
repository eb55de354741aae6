"""AdaLoRA's part in each step (arXiv:2303.10512): rank is taken from the weights that need it least."""

from typing import Any

import torch

STATISTICS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""peft's running importances of each weight, that decide who keeps its rank."""
RANKS = "rank_pattern"
WARMUP, FINAL = 0.1, 0.3
"""Shares of all steps before ranks shrink, and after they stand."""


def settled(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that peft takes while the number of steps is not known: `follow` sets the true ones."""
    return {**settings, "total_step": 1 << 30}


def follow(model: Any, optimizer: torch.optim.Optimizer, step: int, steps: int, settings: dict[str, Any]) -> None:
    """Add the gradient of the orthogonality term before each update, and allocate ranks after it.

    The term (equation 4) comes after clipping, as its size has nothing to do with the data's.
    """
    config = model.peft_config["default"]
    config.total_step = max(2, steps)
    config.tinit = settings.get("tinit", int(WARMUP * steps))
    config.tfinal = settings.get("tfinal", int(FINAL * steps))
    done = step

    def before(*_: Any) -> None:
        _add_orthogonality(model, config.orth_reg_weight)

    def after(*_: Any) -> None:
        nonlocal done
        done += 1
        if _gradients_are_finite(model):
            model.base_model.update_and_allocate(done)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def state(model: Any) -> dict[str, torch.Tensor]:
    """What `restore` needs beside the weights, as tensors."""
    allocator, ranks = model.base_model.rankallocator, model.peft_config["default"].rank_pattern or {}
    kept = {f"{kind}/{name}": tensor for kind in STATISTICS for name, tensor in getattr(allocator, kind).items()}
    return kept | {f"{RANKS}/{name}": torch.tensor(mask, dtype=torch.bool) for name, mask in ranks.items()}


def restore(model: Any, saved: dict[str, torch.Tensor]) -> None:
    """Bring back what `state` gave."""
    allocator, device = model.base_model.rankallocator, next(model.parameters()).device
    for kind in STATISTICS:
        setattr(allocator, kind, {name: tensor.to(device) for name, tensor in _below(kind, saved)})
    ranks = {name: mask.tolist() for name, mask in _below(RANKS, saved)}
    model.peft_config["default"].rank_pattern = ranks or None


def _below(kind: str, saved: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(name.removeprefix(f"{kind}/"), tensor) for name, tensor in saved.items() if name.startswith(f"{kind}/")]


def _add_orthogonality(model: Any, weight: float) -> None:
    """The mean over all P and Q of ‖PᵀP − I‖, as peft adds it to a loss that the model computes."""
    sides = {name: matrix for name, matrix in model.named_parameters() if "lora_A" in name or "lora_B" in name}
    with torch.enable_grad():
        products = [matrix @ matrix.T if "lora_A" in name else matrix.T @ matrix for name, matrix in sides.items()]
        terms = [torch.linalg.matrix_norm(product - torch.eye(*product.shape).to(product)) for product in products]
        gradients = torch.autograd.grad(weight * torch.stack(terms).mean(), list(sides.values()))
    for matrix, gradient in zip(sides.values(), gradients, strict=True):
        matrix.grad = gradient if matrix.grad is None else matrix.grad + gradient


def _gradients_are_finite(model: Any) -> bool:
    """In float16 a step may be skipped; what its gradients say of importance is nonsense."""
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
