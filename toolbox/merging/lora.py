"""What a plain LoRA adapter does to its base, in torch alone: base + scaling · B·A (arXiv:2106.09685, 4.1).

As peft computes it, bit for bit, in pieces that stay in the processor's cache.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from toolbox import files
from toolbox.merging.base import Base
from toolbox.merging.tensors import Entry, Reader
from toolbox.plan import MergePlan

LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.weight)?")
WHOLE_KEY = re.compile(r"base_model\.model\.(?P<name>.+)")
HEAD, EMBEDDINGS = "lm_head.weight", ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "modules_to_save",
    "layers_to_transform", "layers_pattern", "runtime_config", "eva_config", "corda_config", "rank_pattern",
    "alpha_pattern", "qalora_group_size", "megatron_core",
}  # fmt: skip
"""Fields of adapter_config.json that leave the sum base + scaling · B·A as it is; where others are set, peft merges."""
PIECE, LEAST_ROWS = 1 << 18, 32
"""Numbers of a weight computed at a time, in whole rows; with fewer rows BLAS may take another way, to other bits."""


class Delta(msgspec.Struct, frozen=True):
    """What is added to one weight: scaling · B·A of A (r × in) and B (out × r); to an embedding, the transpose."""

    source: Reader
    a: str
    b: str
    scaling: float
    transposed: bool

    def add_to(self, weight: torch.Tensor, room: torch.Tensor) -> bool:
        """In place, each sum in float32 and rounded to the weight's own type; whether all of it is finite.

        `room`: numbers to compute in, 2 · PIECE or 2 · LEAST_ROWS rows.
        """
        a, b = self.source.get(self.a).float(), self.source.get(self.b).float()
        if self.transposed:
            a, b = b.T, a.T
        finite = True
        pieces = max(1, len(b) // max(LEAST_ROWS, PIECE // a.shape[1]))
        for left, part in zip(b.tensor_split(pieces), weight.tensor_split(pieces), strict=True):
            product = room[: part.numel()].view(part.shape)
            torch.matmul(left, a, out=product)
            product.mul_(self.scaling)
            part.add_(product.to(part.dtype) if self.transposed else product)  # as peft rounds an embedding's
            least, most = torch.aminmax(part)
            finite = finite and math.isfinite(least) and math.isfinite(most)
        return finite


class LoraChanges:
    """All that a plain LoRA adapter does, by the names of the base's own tensors."""

    dropped: frozenset[str] = frozenset()

    def __init__(self, plan: MergePlan, config: Mapping[str, Any], base: Base) -> None:
        self._base, entries = base, base.entries
        self._dtype = getattr(torch, plan.dtype)
        self._reader = Reader(plan.adapter / "adapter_model.safetensors")
        pairs: dict[tuple[str, bool], dict[str, str]] = {}
        self.replaced: dict[str, str] = {}
        """Tensors that are the adapter's own, whole."""
        unnamed = 0
        for key in self._reader.entries:
            if match := LORA_KEY.fullmatch(key):
                pairs.setdefault((match["module"], bool(match["kind"])), {})[match["side"]] = key
            elif match := WHOLE_KEY.fullmatch(key):
                self.replaced[match["name"].replace(".base_layer.", ".")] = key
            else:
                unnamed += 1
        self.deltas = {
            f"{module}.weight": self._delta(config, module, pair["A"], pair["B"], embedding)
            for (module, embedding), pair in pairs.items()
            if len(pair) == 2
        }
        self._room = torch.empty(0)
        self.embedding = next((name for name in entries if name.endswith(EMBEDDINGS)), "")
        if HEAD not in entries and self._tied_whole():
            del self.replaced[HEAD]
        self.added = {HEAD: self.entry(HEAD, entries[self.embedding])} if self._unties(entries) else {}
        """The head, where the base has its embeddings for one and the adapter changes only one of them."""
        whole = not unnamed and len(self.deltas) == len(pairs) and self.names <= {*entries, *self.added}
        self.complete = whole and all(self._fits(name, {**entries, **self.added}[name]) for name in self.deltas)
        """Whether each part of the adapter is known, and each weight of the base can take what is added to it."""

    def _tied_whole(self) -> bool:
        """Whether the adapter brings embeddings and head, as peft saves those of a resized model, and they are one."""
        held = [self.replaced.get(name) for name in (HEAD, self.embedding)]
        if not all(held) or {HEAD, self.embedding} & set(self.deltas):
            return False
        head, embedding = (self._reader.get(name) for name in held if name)
        return torch.equal(head, embedding)

    def _unties(self, entries: Mapping[str, Entry]) -> bool:
        """Where tokens were added, a head that the adapter says nothing of is still its new embeddings."""
        if HEAD in entries or not self.embedding:
            return False
        grown = self.entry(self.embedding, entries[self.embedding]) != entries[self.embedding]
        return HEAD in self.names or (self.embedding in self.names and not grown)

    def _delta(self, config: Mapping[str, Any], module: str, a: str, b: str, embedding: bool) -> Delta:
        r = self._reader.entries[a].shape[0]
        scaling = scaling_of(config, module, r)
        return Delta(self._reader, a, b, scaling, transposed=embedding)

    @property
    def names(self) -> set[str]:
        return {*self.deltas, *self.replaced}

    def entry(self, name: str, entry: Entry) -> Entry:
        """What a tensor is afterwards: it has more rows where tokens were added, a sum the precision of the model."""
        known = self.replaced.get(name)
        dtype = self._dtype if name in self.deltas else entry.dtype
        return Entry(dtype, self._reader.entries[known].shape if known else entry.shape)

    def _fits(self, name: str, entry: Entry) -> bool:
        delta = self.deltas[name]
        a, b = self._reader.entries[delta.a].shape, self._reader.entries[delta.b].shape
        product = (a[-1], b[0]) if delta.transposed else (b[0], a[-1])
        return len(a) == len(b) == 2 and self.entry(name, entry).shape == product

    def apply(self, name: str, weight: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        """The merged tensor, which may be `weight` itself, and whether it is finite; None: a tensor that is added."""
        if weight is None:
            weight = self._base.get(self.embedding)
        if name in self.replaced:
            weight = self._reader.get(self.replaced[name]).to(weight.dtype)
        if name in self.deltas:
            most = 2 * max(PIECE, LEAST_ROWS * weight.shape[1])
            self._room = self._room if len(self._room) >= most else torch.empty(most)
            weight = weight.to(self._dtype)
            return weight, self.deltas[name].add_to(weight, self._room)
        return weight, bool(torch.isfinite(weight).all())

    def write_config(self, folder: Path) -> None:
        before = self._base.entries.get(self.embedding)
        after = self.entry(self.embedding, before) if before else None
        self._base.write_config(folder, bool(self.added), after.shape[0] if after and after != before else 0)

    def close(self) -> None:
        self._reader.close()


def scaling_of(config: Mapping[str, Any], module: str, r: int) -> float:
    """lora_alpha / r, or lora_alpha / √r for rsLoRA (arXiv:2312.03732); alpha may be the module's own."""
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = float(next(own, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def is_plain(config: Mapping[str, Any]) -> bool:
    """Whether only harmless fields are set, so that a variant unknown here goes to peft."""
    changed = {name for name, value in config.items() if value} - HARMLESS
    if config.get("init_lora_weights") in (True, False, "gaussian", "eva", "orthogonal"):
        changed.discard("init_lora_weights")
    if config.get("bias") == "none":
        changed.discard("bias")
    alphas = [config.get("lora_alpha", 8), *(config.get("alpha_pattern") or {}).values()]
    return config.get("peft_type") == "LORA" and not changed and all(isinstance(one, int | float) for one in alphas)


def config_of(adapter: Path) -> dict[str, Any]:
    """The adapter_config.json in a folder."""
    return dict(files.read_json(adapter / "adapter_config.json") or {})
