"""AdamW whose moments live in a low-rank projection of the gradient, for `--method galore` and `--method apollo`."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch

Kind = Literal["", "galore", "apollo"]
GROWTH = 1.01
"""The most that an APOLLO update's norm may grow from step to step (arXiv:2412.05270, equation 4)."""


class ProjectedAdamW(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) with float32 moments of rank × the longer side for matrices of projected groups.

    Groups have `projection` ("galore", "apollo", or "" for plain AdamW), `rank`, `update_proj_gap` and `scale`.
    GaLore (arXiv:2403.03507, algorithm 2) projects on the gradient's leading singular vectors and the update back.
    APOLLO (arXiv:2412.05270, algorithm 1) projects at random, to learn only how much to scale each channel of the
    gradient itself. Both agree with galore-torch 1.0 and, but for its random numbers, apollo-torch 1.0.3.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        seed: int = 0,
    ) -> None:
        plain = {"projection": "", "rank": 0, "update_proj_gap": 1, "scale": 1.0, "weight_decay": 0.0}
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "seed": seed, **plain})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for index, weight in enumerate(group["params"]):
                if weight.grad is not None:
                    self._update(weight, weight.grad.float(), group, index)

    def _update(self, weight: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any], index: int) -> None:
        state = self.state[weight]
        step = state["step"] = state.get("step", 0) + 1
        kind: Kind = group["projection"]
        projection = self._projection(state, gradient, group, index) if kind else None
        small = gradient if projection is None else _project(gradient, projection)
        direction = self._direction(state, small, group)
        if kind == "galore" and projection is not None:
            direction = _project_back(direction, projection, gradient.shape) * group["scale"]
        elif kind == "apollo":
            direction = _scaled(gradient, small, direction, state) * math.sqrt(group["scale"])
        first, second = group["betas"]
        rate = group["lr"] * math.sqrt(1 - second**step) / (1 - first**step)
        weight.add_(direction.to(weight.dtype), alpha=-rate)
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])

    def _direction(self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Adam's m / (√v + ε), of the gradient's shape."""
        first, second = group["betas"]
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(gradient)
        state["exp_avg"].mul_(first).add_(gradient, alpha=1 - first)
        state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group["eps"])

    def _projection(
        self, state: dict[str, Any], gradient: torch.Tensor, group: dict[str, Any], index: int
    ) -> torch.Tensor:
        """[rank, shorter side]. GaLore's is kept; APOLLO's is drawn again from its seed when needed."""
        passed, gap = state["step"] - 1, group["update_proj_gap"]
        rank = min(group["rank"], *gradient.shape)
        if group["projection"] == "galore":
            if passed % gap == 0:
                state["projection"] = _leading(gradient, rank)
            return state["projection"]  # type: ignore[no-any-return]
        generator = torch.Generator(gradient.device).manual_seed(group["seed"] + 7919 * index + passed // gap)
        drawn = torch.randn(rank, min(gradient.shape), generator=generator, device=gradient.device)
        return drawn / math.sqrt(rank)


def _leading(gradient: torch.Tensor, rank: int) -> torch.Tensor:
    """The leading singular vectors of the shorter side, as rows [rank, shorter side]."""
    left, _values, right = torch.linalg.svd(gradient, full_matrices=False)
    return (right[:rank] if gradient.shape[0] >= gradient.shape[1] else left[:, :rank].T).contiguous()


def _project(gradient: torch.Tensor, projection: torch.Tensor) -> torch.Tensor:
    tall = gradient.shape[0] >= gradient.shape[1]
    return gradient @ projection.T if tall else projection @ gradient


def _project_back(small: torch.Tensor, projection: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return small @ projection if shape[0] >= shape[1] else projection.T @ small


def _scaled(
    gradient: torch.Tensor, small: torch.Tensor, direction: torch.Tensor, state: dict[str, Any]
) -> torch.Tensor:
    """The gradient, each channel as long as Adam makes its projection, its growth limited."""
    along = 0 if small.shape[0] < small.shape[1] else 1
    lengths = direction.norm(dim=along, keepdim=True) / (small.norm(dim=along, keepdim=True) + 1e-8)
    scaled = gradient * lengths
    norm = scaled.norm()
    if "norm" in state:
        limit = torch.clamp(norm / (state["norm"] + 1e-8), min=GROWTH) / GROWTH
        scaled, norm = scaled / limit, norm / limit
    state["norm"] = norm
    return scaled
