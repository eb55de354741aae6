"""What any other adapter does to its base: peft's own merge, a layer at a time.

The model has shapes and no numbers, but for the layers whose turn it is: their tensors are read, become the parameters
that transformers makes of them (experts fused, names changed), are merged by peft, and become tensors of files again.
"""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.modeling_utils import LoadStateDictConfig

from toolbox import loading, methods
from toolbox.errors import InputError, lacks_memory
from toolbox.i18n import _
from toolbox.merging.base import Base
from toolbox.merging.lora import WHOLE_KEY
from toolbox.merging.tensors import Entry
from toolbox.plan import MergePlan

MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of glibc's malloc.h."""


class Group(msgspec.Struct):
    """Tensors of files that become parameters together, and which."""

    tensors: list[str]
    parameters: list[str]


class Unit(msgspec.Struct):
    """What has to be in memory at once: groups, and the adapted modules and whole parameters that they make."""

    groups: set[str]
    parts: set[str]


class LayerChanges:
    """All that an adapter does, by the names of the base's own tensors; found out as it is asked for."""

    def __init__(self, plan: MergePlan, base: Base) -> None:
        _give_back_freed_memory()
        self._plan, self._base, self._entries = plan, base, base.entries
        self._model = _shapes(plan)
        self._empty: dict[str, torch.Tensor] = dict(self._model.state_dict())
        self._mapping: Any = get_model_conversion_mapping(self._model)
        self._groups = self._grouped()
        made = {parameter for group in self._groups.values() for parameter in group.parameters}
        tied = self._model.all_tied_weights_keys
        self._tied = {head: tied[head] for head in self._empty if head not in made and tied.get(head) in made}
        base.parameter_of = {
            group.tensors[0]: group.parameters[0] for group in self._groups.values() if len(group.tensors) == 1
        }
        self._alone = {
            group.tensors[0]: group.parameters[0]
            for group in self._groups.values()
            if len(group.tensors) == len(group.parameters) == 1
        }
        """Tensors that are one parameter each, neither cut nor put together."""
        self._adapted = _Adapted(plan)
        self._units = self._united()
        changed = {part for unit in self._units for part in unit.parts}
        new = {name for name in self._empty if name not in made and self._tied.get(name, "") not in made}
        untied = {
            head
            for head, source in self._tied.items()
            if {_owner(head), _owner(source), source} & changed and _owner(head) not in self._adapted.following
        }
        if lacking := {name for name in new if not self._adapted.brings(name)}:
            raise base.lacking(lacking)
        self._new = {name: Entry(self._empty[name].dtype, tuple(self._empty[name].shape)) for name in new | untied}
        self._ready: dict[str, torch.Tensor] = {}

    @property
    def added(self) -> dict[str, Entry]:
        return self._new

    @property
    def names(self) -> set[str]:
        return {name for unit in self._units for key in unit.groups for name in self._groups[key].tensors}

    @property
    def dropped(self) -> set[str]:
        """A reward model has a head of its own in the place of the one that writes."""
        placed = {name for group in self._groups.values() for name in group.tensors}
        return set(self._entries) - placed if methods.scores(self._plan.adapter) else set()

    def entry(self, name: str, entry: Entry) -> Entry:
        """What a tensor is afterwards: it has more rows where tokens were added."""
        made = self._empty.get(self._alone.get(name, ""))
        grown = made is not None and made.ndim == len(entry.shape) and made.shape[1:] == entry.shape[1:]
        return Entry(entry.dtype, tuple(made.shape)) if grown and made is not None else entry

    def _grouped(self) -> dict[str, Group]:
        """The base's tensors by what transformers makes of them when it loads them."""
        renamings = [each for each in self._mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in self._mapping if isinstance(each, WeightConverter)]
        prefix = self._model.base_model_prefix
        groups: dict[str, Group] = {}
        for name in self._entries:
            target, pattern = rename_source_key(name, renamings, converters, prefix, self._empty)
            if target not in self._empty and name in self._empty:
                target, pattern = name, None
            if target not in self._empty:
                continue
            made = [target]
            for converter in converters if pattern is not None else ():
                if pattern in converter.source_patterns:
                    first = converter.target_patterns[0]
                    made = [target.replace(first, other) for other in converter.target_patterns]
            group = groups.setdefault(target, Group([], [parameter for parameter in made if parameter in self._empty]))
            group.tensors.append(name)
        return groups

    def _united(self) -> list[Unit]:
        """The changed parts, each with all groups that it is made of, and with the parts that those make too."""
        by_parameter = {parameter: key for key, group in self._groups.items() for parameter in group.parameters}
        by_parameter |= {head: by_parameter[source] for head, source in self._tied.items()}
        units: list[Unit] = []
        for part in self._adapted.parts:
            below = [name for name in by_parameter if name == part or name.startswith(f"{part}.")]
            unit = Unit({by_parameter[name] for name in below}, {part})
            for other in [other for other in units if other.groups & unit.groups]:
                units.remove(other)
                unit = Unit(unit.groups | other.groups, unit.parts | other.parts)
            units.append(unit)
        return units

    def apply(self, name: str, weight: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        """The merged tensor and whether it is finite. All that its unit makes is kept until it is asked for."""
        if name not in self._ready:
            unit = next((unit for unit in self._units if self._makes(unit, name)), None)
            self._ready |= self._merged(unit) if unit else {name: self._base.get(self._source(name))}
        entry = self._new.get(name) or self.entry(name, self._entries[name])
        merged = self._ready.pop(name).to(entry.dtype)
        return merged, bool(torch.isfinite(merged).all())

    def _makes(self, unit: Unit, name: str) -> bool:
        return any(name in self._groups[key].tensors for key in unit.groups) or _owner(name) in unit.parts

    def _source(self, head: str) -> str:
        """The tensor that a tied head is."""
        return next(group.tensors[0] for group in self._groups.values() if self._tied[head] in group.parameters)

    def _merged(self, unit: Unit) -> dict[str, torch.Tensor]:
        """The merged tensors of a unit, by their names in files."""
        stored = {name: self._base.get(name) for key in unit.groups for name in self._groups[key].tensors}
        settings = LoadStateDictConfig(
            dtype=getattr(torch, self._plan.dtype), device_map={"": "cpu"}, weight_mapping=self._mapping
        )
        convert_and_load_state_dict_in_model(self._model, stored, settings)
        made = {name for key in unit.groups for name in self._groups[key].parameters}
        values = {name: self._model.get_parameter_or_buffer(name).data for name in made}
        values |= {head: values[source] for head, source in self._tied.items() if source in values}
        merged = self._adapted.merge(unit.parts, values)
        kept = {name: tensor for name, tensor in merged.items() if name in made or name in self._new}
        for name in made:
            owner, _dot, attribute = name.rpartition(".")
            setattr(self._model.get_submodule(owner), attribute, torch.nn.Parameter(self._empty[name], False))
        return revert_weight_conversion(self._model, kept)

    def write_config(self, folder: Path) -> None:
        if methods.scores(self._plan.adapter):
            self._model.config.architectures = [type(self._model).__name__]
            self._model.config.save_pretrained(folder)
            return
        tokens = getattr(self._model.config.get_text_config(), "vocab_size", 0)  # mllama's embeddings have 8 rows more
        self._base.write_config(folder, untied=bool(self._new), tokens=tokens)

    def close(self) -> None:
        self._ready.clear()


def _give_back_freed_memory() -> None:
    """Have glibc return each freed tensor to the system (mallopt(3)).

    By default it keeps what is smaller than the largest freed so far, up to 32 MiB: three times the model, by DoRA.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none, and keeps nothing
        if mallopt:
            mallopt(MMAP_THRESHOLD, 1 << 20)


def _owner(parameter: str) -> str:
    return parameter.rpartition(".")[0]


def _shapes(plan: MergePlan) -> Any:
    """The model without numbers, with as many embeddings as the adapter has."""
    model = loading.base_model(plan.model.path, plan.dtype, "meta", scores=methods.scores(plan.adapter))
    loading.make_room(model, plan.adapter)
    return model


class _Adapted:
    """The adapter on a model whose weights are there in shape only, one number each, until they are merged."""

    def __init__(self, plan: MergePlan) -> None:
        model = _shapes(plan)
        keys = loading.adapter_keys(plan.adapter)
        whole = [match["name"].replace(".base_layer.", ".") for key in keys if (match := WHOLE_KEY.fullmatch(key))]
        self._owners: dict[str, tuple[torch.nn.Module, str]] = {}
        for path, module in model.named_modules():
            for attribute, parameter in list(module._parameters.items()):
                name = f"{path}.{attribute}" if path else attribute
                if parameter is not None:
                    self._owners[name] = module, attribute
                    self._put(name, _hollow(parameter, real=name in whole))
        self._model = loading.with_adapter(model, plan.adapter).eval()
        inner = self._model.get_base_model()
        self._modules = dict(_outermost(inner))
        self._saved = [name for name, part in self._modules.items() if isinstance(part, AuxiliaryTrainingWrapper)]
        inside = tuple(f"{name}." for name in self._modules)
        self._whole = {name for name in whole if name in self._owners and not name.startswith(inside)}
        self._given = {
            key.removeprefix("base_model.model.").replace(".base_layer.", ".") for key in keys if ".base_layer." in key
        }
        """What the adapter holds of adapted modules' own parameters: trained biases, embeddings with new rows."""

    @property
    def parts(self) -> list[str]:
        """The names of adapted modules, and of parameters that the adapter brings whole."""
        return [*self._modules, *sorted(self._whole)]

    def brings(self, parameter: str) -> bool:
        """Whether a parameter that the base's files don't have is the adapter's: a part it holds whole, or more."""
        owner = _owner(parameter)
        inside = any(owner == part or owner.startswith(f"{part}.") for part in self._saved)
        return inside or parameter in self._whole or any(key.endswith(parameter) for key in self._given)

    @property
    def following(self) -> set[str]:
        """Heads that are still the embeddings afterwards, which were trained as one with them, whole or some tokens.

        Of two LoRAs that are one (ensure_weight_tying), peft 0.21 loads two: such a head gets a tensor of its own.
        """
        as_one = getattr(self._model.peft_config["default"], "ensure_weight_tying", False)
        wrapped = {name: part for name, part in self._modules.items() if isinstance(part, AuxiliaryTrainingWrapper)}
        tokens = {name: getattr(part, "token_adapter", None) for name, part in wrapped.items()}
        return {name for name in wrapped if as_one or getattr(tokens[name], "tied_adapter", None) is not None}

    def merge(self, parts: set[str], values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`values`, the parameters of the base, as peft's merge_and_unload leaves them. They are changed in place."""
        merged = dict(values)
        for part in parts & self._whole:
            module, attribute = self._owners[part]
            merged[part] = module._parameters[attribute].data  # type: ignore[union-attr]
        for part in parts - self._whole:
            below = [name for name in values if name.startswith(f"{part}.")]
            for name in below:
                if name not in self._given:
                    self._put(name, values[name].clone())
            for name, tensor in _unloaded(part, self._modules[part]).state_dict().items():
                merged[f"{part}.{name}"] = tensor
            for name in below:
                self._put(name, _hollow(values[name], real=False))
        return merged

    def _put(self, name: str, tensor: torch.Tensor) -> None:
        module, attribute = self._owners[name]
        module._parameters[attribute] = torch.nn.Parameter(tensor, requires_grad=False)


def _hollow(tensor: torch.Tensor, real: bool) -> torch.Tensor:
    """Zeros of that shape; unless they have to be `real`, one number seen from everywhere."""
    shape = tuple(tensor.shape)
    return torch.zeros(shape, dtype=tensor.dtype) if real else torch.zeros((), dtype=tensor.dtype).expand(shape)


def _outermost(model: Any) -> Iterator[tuple[str, Any]]:
    """The modules that peft put in, but for those inside others."""
    inside = ""
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper) and not (inside and name.startswith(inside)):
            inside = f"{name}."
            yield name, module


def _unloaded(name: str, module: Any) -> torch.nn.Module:
    """What merge_and_unload (peft 0.21) leaves in a module's place. Raises InputError where peft can't merge it."""
    if hasattr(module, "unload_and_optionally_merge_module"):
        unloaded: torch.nn.Module = module.unload_and_optionally_merge_module(True, False, None)
        return unloaded
    try:
        module.merge(safe_merge=False)
    except (ValueError, RuntimeError) as error:
        if lacks_memory(error):
            raise
        raise InputError(
            _("peft can't merge this adapter into {name}: {reason}").format(name=name, reason=error),
            _("Use it on its base model: evaluate takes both."),
        ) from error
    left: torch.nn.Module = module.get_base_layer()
    return left
