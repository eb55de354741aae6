"""The merged weights, shard by shard: base + scaling · B·A (LoRA, arXiv:2106.09685, 4.1), as peft computes it."""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft import LoraConfig, PeftConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from toolbox import files, loading, methods
from toolbox.errors import ToolboxError
from toolbox.i18n import _
from toolbox.plan import MergePlan

INDEX = "model.safetensors.index.json"
LORA_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<kind>embedding_)?(?P<side>[AB])(?:\.weight)?")
WHOLE_KEY = re.compile(r"base_model\.model\.(?P<name>.+)")
HEAD, EMBEDDINGS = "lm_head.weight", ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")
HARMLESS = {
    "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora", "modules_to_save",
    "layers_to_transform", "layers_pattern", "runtime_config", "eva_config", "corda_config",
}  # fmt: skip
"""LoraConfig fields that leave the sum base + scaling · B·A as it is; where others are set, peft itself merges."""


class Delta(msgspec.Struct):
    """What an adapter adds to one weight: scaling · B·A, transposed for an embedding."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float
    embedding: bool

    def add_to(self, weight: torch.Tensor) -> None:
        """In place; the sum is computed in float32 and rounded once, to the weight's own dtype."""
        product = self.b.float() @ self.a.float()
        weight.add_((product.T if self.embedding else product) * self.scaling)


class Changes(msgspec.Struct):
    """All that an adapter does to its base, by the names of the base's parameters."""

    deltas: dict[str, Delta]
    replaced: dict[str, torch.Tensor]

    @property
    def names(self) -> set[str]:
        return {*self.deltas, *self.replaced}

    def apply(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        if name in self.replaced:
            weight = self.replaced[name].to(weight.dtype)
        if name in self.deltas:
            self.deltas[name].add_to(weight)
        return weight


def merge(plan: MergePlan, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Write config.json and the merged safetensors into `folder`; `progress` is told (tensors done, tensors).

    Raises ToolboxError where the adapter holds NaN or infinity.
    """
    config = PeftConfig.from_pretrained(str(plan.adapter))
    shards = shards_of(plan.model.path)
    changes = _changes(plan.adapter, config)
    names = {name for held in shards.values() for name in held}
    untied = _untied(plan, changes, names) if changes else {}
    if changes is None or not changes.names <= names | set(untied):
        _merge_by_peft(plan, folder)
        return
    stored = _Stored(plan)
    done, total, sizes = 0, len(names) + len(untied), 0
    for shard, held in shards.items():
        tensors: dict[str, torch.Tensor] = {}
        with safe_open(plan.model.path / shard, framework="pt") as file:
            for name in held:
                for target in (name, *(head for head, source in untied.items() if source == name)):
                    tensors[target] = changes.apply(target, stored.weight(name, file.get_tensor(name)))
                    if target in changes.names:
                        _refuse_broken(target, tensors[target])
                    done += 1
                    progress(done, total)
        sizes += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    _write_index(folder, shards, untied, sizes)
    _write_config(plan, folder, untied=bool(untied))


def base_name(plan: MergePlan) -> str:
    """The base that the adapter is merged onto, in words."""
    if plan.quantization == "nf4":
        return _("{model}, its {quantization} weights dequantised to {dtype}").format(
            model=plan.model.id, quantization=plan.quantization, dtype=plan.dtype
        )
    return _("{model} in {dtype}").format(model=plan.model.id, dtype=plan.dtype)


def shards_of(folder: Path) -> dict[str, list[str]]:
    """The safetensors files of a model and the tensors in each."""
    index = files.read_json(folder / INDEX)
    names = sorted(set(index["weight_map"].values())) if index else ["model.safetensors"]
    shards = {}
    for name in names:
        with safe_open(folder / name, framework="pt") as file:
            shards[name] = list(file.keys())
    return shards


def _changes(adapter: Path, config: PeftConfig) -> Changes | None:
    """What the adapter does, or None where it is more than plain LoRA."""
    if not isinstance(config, LoraConfig) or not _plain(config):
        return None
    sides: dict[tuple[str, bool], dict[str, torch.Tensor]] = {}
    replaced = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        if match := LORA_KEY.fullmatch(key):
            sides.setdefault((match["module"] + ".weight", bool(match["kind"])), {})[match["side"]] = tensor
        elif match := WHOLE_KEY.fullmatch(key):
            replaced[match["name"].replace(".base_layer.", ".")] = tensor
    deltas = {
        name: Delta(pair["A"], pair["B"], _scaling(config, pair["A"].shape[0]), embedding)
        for (name, embedding), pair in sides.items()
    }
    return Changes(deltas, replaced)


def _plain(config: LoraConfig) -> bool:
    """Whether only harmless fields differ from LoraConfig's defaults, so that a variant unknown here goes to peft."""
    default = LoraConfig()
    changed = {name for name, value in vars(config).items() if value != getattr(default, name, None) and value}
    if config.init_lora_weights in (True, False, "gaussian"):
        changed.discard("init_lora_weights")
    return changed <= HARMLESS


def _scaling(config: LoraConfig, r: int) -> float:
    """lora_alpha / r, or lora_alpha / √r for rsLoRA (arXiv:2312.03732)."""
    return config.lora_alpha / (math.sqrt(r) if config.use_rslora else r)


def _untied(plan: MergePlan, changes: Changes, names: set[str]) -> dict[str, str]:
    """{head: embedding} where the two share a tensor in the base and the adapter changes only one of them."""
    embedding = next((name for name in names if name.endswith(EMBEDDINGS)), "")
    if HEAD in names or not embedding or not changes.names & {HEAD, embedding}:
        return {}
    return {HEAD: embedding}


class _Stored:
    """The base's weights as the adapter saw them in training: in plan.dtype, and through 4 bits where it was so."""

    def __init__(self, plan: MergePlan) -> None:
        self._dtype = getattr(torch, plan.dtype)
        self._quantised: dict[str, Any] = dict(_quantised(plan)) if plan.quantization == "nf4" else {}

    def weight(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of its own, which may be changed."""
        if module := self._quantised.get(name):
            from peft.utils.integrations import dequantize_bnb_weight

            tensor = dequantize_bnb_weight(module.weight).cpu()
        return tensor.to(self._dtype, copy=True) if tensor.is_floating_point() else tensor


def _quantised(plan: MergePlan) -> Iterator[tuple[str, torch.nn.Module]]:
    """The 4-bit modules of the base, quantised again as for training, by the name of their weight."""
    model = base(plan)
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit":
            yield f"{name}.weight", module


def base(plan: MergePlan) -> Any:
    """The base model as the adapter knew it: in 4 bits for QLoRA."""
    device = loading.torch_device(plan.device.kind, plan.device.index)
    scores = methods.scores(plan.adapter)
    return loading.base_model(plan.model.path, plan.dtype, device, plan.BitsAndBytesConfig or None, scores=scores)


def _refuse_broken(name: str, tensor: torch.Tensor) -> None:
    if tensor.is_floating_point() and not torch.isfinite(tensor).all():
        raise ToolboxError(
            _("The adapter is broken: merged into {name} it gives NaN or infinity.").format(name=name),
            _("Train it again with a lower learning rate, or take an earlier checkpoint."),
        )


def _write_index(folder: Path, shards: dict[str, list[str]], untied: dict[str, str], total_bytes: int) -> None:
    if len(shards) < 2:
        return
    where = {name: shard for shard, held in shards.items() for name in held}
    where |= {head: where[source] for head, source in untied.items()}
    files.write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": where}, mode=0o644)


def _write_config(plan: MergePlan, folder: Path, untied: bool) -> None:
    """The base's config.json, with the merged weights' dtype, and told where embeddings are no longer tied."""
    config = json.loads((plan.model.path / "config.json").read_text("utf-8"))
    for key in ("quantization_config", "torch_dtype", "_name_or_path"):
        config.pop(key, None)
    config["dtype"] = plan.dtype
    if untied:
        config["tie_word_embeddings"] = False
    files.write_json(folder / "config.json", config, mode=0o644)


def _merge_by_peft(plan: MergePlan, folder: Path) -> None:
    """For every other tuner (DoRA, OFT, IA3 …): peft's own merge, in memory."""
    model = base(plan)
    if plan.quantization == "nf4":
        model = model.dequantize(dtype=getattr(torch, plan.dtype))
        for key in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(model.config, key):
                delattr(model.config, key)
        model.is_loaded_in_4bit = False  # peft's IA3 asks this flag, not the weights
    adapted: Any = loading.with_adapter(model, plan.adapter)
    merged = adapted.merge_and_unload(safe_merge=True)
    if kept := getattr(getattr(merged, "score", None), "modules_to_save", None):
        merged.score = kept["default"]  # peft's LN tuning leaves a reward model's head wrapped
    merged.save_pretrained(folder, max_shard_size="4GB")
