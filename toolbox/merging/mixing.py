"""Several LoRA adapters made into one, by weight: what peft's add_weighted_adapter computes, a module at a time.

Task arithmetic (linear, cat, svd: arXiv:2212.04089), TIES (arXiv:2306.01708), DARE (arXiv:2311.03099).
"""

import hashlib
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft.utils import merge_utils
from safetensors.torch import save_file

from toolbox import files
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.merging import lora
from toolbox.merging.tensors import Reader
from toolbox.plan import Mixture

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

Tensors = list[torch.Tensor]
KINDS: dict[str, Callable[[Tensors, torch.Tensor, float], torch.Tensor]] = {
    "linear": lambda tensors, weights, density: merge_utils.task_arithmetic(tensors, weights),
    "magnitude_prune": merge_utils.magnitude_prune,
    "ties": merge_utils.ties,
    "dare_linear": merge_utils.dare_linear,
    "dare_ties": merge_utils.dare_ties,
}
"""Sums of tensors by weight, by peft's names; with `_svd` of whole updates, else of their factors."""


class Factors(NamedTuple):
    """What an adapter has for a module: A (r × in), B (out × r), its scaling, and the adapter's weight."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    weight: float


class Adapter:
    """One of those that are mixed."""

    def __init__(self, folder: Path, weight: float) -> None:
        self.folder, self.weight, self.config = folder, weight, lora.config_of(folder)
        self.reader = Reader(folder / WEIGHTS)
        self.pairs: dict[tuple[str, bool], dict[str, str]] = {}
        others = []
        for key in self.reader.entries:
            match = lora.LORA_KEY.fullmatch(key)
            if match:
                self.pairs.setdefault((match["module"], bool(match["kind"])), {})[match["side"]] = key
            else:
                others.append(key)
        if others or not lora.is_plain(self.config):
            raise InputError(
                _("{path} is more than two matrices beside each weight, and can't be mixed.").format(path=folder),
                _("Mix adapters of the methods lora, rslora, lora+ or lora-fa, without modules_to_save."),
            )

    def factors(self, module: tuple[str, bool]) -> tuple[torch.Tensor, torch.Tensor, float] | None:
        """A (r × in), B (out × r) and the scaling of a module; None where this adapter leaves it alone."""
        pair = self.pairs.get(module)
        if pair is None:
            return None
        a, b = self.reader.get(pair["A"]).float(), self.reader.get(pair["B"]).float()
        return a, b, lora.scaling_of(self.config, module[0], a.shape[0])


def mix(mixture: Mixture, seed: int, folder: Path) -> None:
    """Write the mixture of the adapters as an adapter into `folder`.

    Each adapter counts by its own scaling, alpha / √r for rsLoRA, and the mixture has 1. peft 0.21 keeps use_rslora
    beside alpha = r, and its mixtures of rsLoRA are √r times too strong.
    DARE draws each module's entries by the seed and the module's name, so no other module's presence changes them.
    Raises InputError where they are more than plain LoRA, or of ranks that this combination can't mix.
    """
    adapters = [Adapter(path, weight) for path, weight in zip(mixture.adapters, mixture.weights, strict=True)]
    modules = sorted({module for adapter in adapters for module in adapter.pairs})
    rank = _rank(mixture, adapters)
    mixed: dict[str, torch.Tensor] = {}
    for module in modules:
        found = [Factors(*factors, adapter.weight) for adapter in adapters if (factors := adapter.factors(module))]
        digest = hashlib.sha256(f"{seed} {module[0]}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:8], "little"))
        a, b = _combined(mixture, found, rank)
        prefix, kind, end = f"base_model.model.{module[0]}.lora_", "embedding_" * module[1], ".weight" * (not module[1])
        mixed |= {f"{prefix}{kind}A{end}": a.contiguous(), f"{prefix}{kind}B{end}": b.contiguous()}
    config = adapters[0].config | {
        "r": rank, "lora_alpha": rank, "use_rslora": False, "rank_pattern": {}, "alpha_pattern": {},
        "target_modules": sorted(module for module, _embedding in modules), "layers_to_transform": None,
        "layers_pattern": None, "exclude_modules": None,
    }  # fmt: skip
    for adapter in adapters:
        adapter.reader.close()
    for path in adapters[0].folder.iterdir():
        if path.is_file() and path.name not in (CONFIG, WEIGHTS):
            shutil.copyfile(path, folder / path.name)
    save_file(mixed, folder / WEIGHTS, metadata={"format": "pt"})
    files.write_json(folder / CONFIG, config)


def _rank(mixture: Mixture, adapters: Sequence[Adapter]) -> int:
    """The rank of the mixture."""
    ranks = [max(adapter.reader.entries[pair["A"]].shape[0] for pair in adapter.pairs.values()) for adapter in adapters]
    if mixture.combination == "cat":
        return sum(ranks)
    if not mixture.combination.endswith("svd") and len(set(ranks)) > 1:
        raise InputError(
            _("Adapters of different ranks ({ranks}) can't be mixed by {combination}.").format(
                ranks=", ".join(map(str, ranks)), combination=mixture.combination
            ),
            _("Take --combination cat or svd."),
        )
    return max(ranks)


def _combined(mixture: Mixture, found: list[Factors], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A (rank × in) and B (out × rank) of a mixture whose scaling is 1; what a rank has no use for is zero."""
    name, density = mixture.combination, 1.0 if mixture.density is None else mixture.density
    if name == "cat":
        a = torch.cat([one.a * one.weight * one.scaling for one in found])
        b = torch.cat([one.b for one in found], dim=1)
    elif name.endswith("svd"):
        updates = [(one.b @ one.a) * one.scaling for one in found]
        weights = torch.tensor([one.weight for one in found])
        update = KINDS[name.removesuffix("svd").rstrip("_") or "linear"](updates, weights, density)
        u, values, v = torch.linalg.svd(update, full_matrices=False)
        a, b = v[:rank], u[:, :rank] @ torch.diag(values[:rank])
    else:
        shares = [one.weight * one.scaling for one in found]
        roots = torch.tensor([math.sqrt(abs(share)) for share in shares])
        signed = torch.tensor([math.copysign(math.sqrt(abs(share)), share) for share in shares])
        a = KINDS[name]([one.a for one in found], signed, density)
        b = KINDS[name]([one.b for one in found], roots, density)
    more = rank - a.shape[0]
    return torch.nn.functional.pad(a, (0, 0, 0, more)), torch.nn.functional.pad(b, (0, more))
