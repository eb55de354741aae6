"""The merged weights, written as the base's are: file by file, tensor by tensor, each hashed on its way in and out."""

import hashlib
from collections.abc import Callable, Mapping, Set
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import msgspec
import torch

from toolbox import files, methods
from toolbox.errors import CorruptError, ToolboxError
from toolbox.hub import store
from toolbox.i18n import _
from toolbox.merging import lora
from toolbox.merging.base import INDEX, Base
from toolbox.merging.tensors import Entry, Reader, Writer
from toolbox.plan import MergePlan

READ_BASE = ("PSOFT", "DELORA", "OSF", "FROD", "ADAMSS")
"""Kinds of adapters that peft makes out of the base's weights, each time it loads them."""


class Changes(Protocol):
    """What an adapter does to its base, by the names of the tensors in the base's files."""

    @property
    def names(self) -> Set[str]:
        """Tensors that are changed, or new."""

    @property
    def added(self) -> Mapping[str, Entry]:
        """Tensors that the base's files have none of."""

    @property
    def dropped(self) -> Set[str]:
        """Tensors that the merged model has no place for."""

    def entry(self, name: str, entry: Entry) -> Entry:
        """What a tensor is afterwards."""

    def apply(self, name: str, weight: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
        """The merged tensor, which may be `weight` itself, and whether it is finite; None: a tensor that is added."""

    def write_config(self, folder: Path) -> None: ...

    def close(self) -> None: ...


class Hashes(msgspec.Struct):
    """SHA-256 of the weight files that went in and came out, by name."""

    base: dict[str, str] = {}
    output: dict[str, str] = {}


def merge(plan: MergePlan, folder: Path, progress: Callable[[int, int], None]) -> Hashes:
    """Write config.json and the merged safetensors into `folder`; `progress` is told (tensors done, tensors).

    Raises ToolboxError where the adapter holds NaN or infinity, CorruptError where the base is not what was fetched.
    """
    if whole_needed(lora.config_of(plan.adapter)):
        return _whole(plan, folder)
    with closing(Base(plan)) as base, closing(changes_of(plan, base)) as changes:
        written = _Written(plan, folder, base, changes, progress)
        for shard in base.readers:
            written.write(shard)
        written.finish()
    return written.hashes


def whole_needed(config: Mapping[str, Any]) -> bool:
    """Whether peft has to merge the whole model in memory: it makes the adapter out of all of the base's weights."""
    begins = config.get("init_lora_weights")
    mutating = isinstance(begins, str) and begins.startswith((*methods.MUTATING, *methods.LIKEWISE))
    return mutating or str(config.get("peft_type")) in READ_BASE


def _whole(plan: MergePlan, folder: Path) -> Hashes:
    from toolbox.merging import whole

    whole.merge(plan, load_base(plan), folder)
    return Hashes(*(files.hashes(source.glob("*.safetensors")) for source in (plan.model.path, folder)))


def changes_of(plan: MergePlan, base: Base) -> Changes:
    """What the adapter does: plain LoRA by torch alone, everything else by peft's own layers."""
    config = lora.config_of(plan.adapter)
    if lora.is_plain(config) and not methods.scores(plan.adapter):
        changes = lora.LoraChanges(plan, config, base)
        if changes.complete:
            return changes
        changes.close()
    from toolbox.merging import layers

    return layers.LayerChanges(plan, base)


class _Written:
    """The merged model as it grows in its folder."""

    def __init__(
        self, plan: MergePlan, folder: Path, base: Base, changes: Changes, progress: Callable[[int, int], None]
    ) -> None:
        self.hashes = Hashes()
        self._plan, self._folder, self._base, self._changes = plan, folder, base, changes
        self._entries = base.entries
        self._where: dict[str, str] = {}
        self._heads: dict[str, str] = {}
        """Hashes of head and embeddings where config.json says that they are one: stored twice, they may part here."""
        self._bytes = self._done = 0
        self._total = len(self._entries) - len(changes.dropped) + len(changes.added)
        self._progress = progress
        self._changed = changes.names
        manifest = store.read_manifest(plan.model.path)
        self._known = {record.path: record.sha256 for record in manifest.files} if manifest else {}

    def write(self, shard: str) -> None:
        """The file of that name, from the base's; the last one takes the tensors that are added."""
        reader = self._base.readers[shard]
        kept = [name for name in reader.entries if name not in self._changes.dropped]
        added = self._changes.added if shard == list(self._base.readers)[-1] else {}
        entries = {name: self._changes.entry(name, self._entries[name]) for name in kept} | dict(added)
        writer = Writer(self._folder / shard, entries)
        try:
            for name in reader.entries:
                tensor = reader.next(name)
                if name in entries:
                    self._tensor(writer, name, self._base.known(name, tensor))
            for name in added:
                self._tensor(writer, name, None)
            self.hashes.output[shard] = writer.finish()
        finally:
            writer.close()
            reader.release()
        self._where |= dict.fromkeys(entries, shard)
        self._bytes += writer.nbytes
        self.hashes.base[shard] = self._verified(shard, reader)

    def _tensor(self, writer: Writer, name: str, weight: torch.Tensor | None) -> None:
        if weight is None or name in self._changed:
            weight, finite = self._changes.apply(name, weight)
            if not finite:
                raise self._not_finite(name)
        if self._base.tied and name.endswith((lora.HEAD, *lora.EMBEDDINGS)):
            self._heads[name] = hashlib.sha256(weight.contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()
        writer.write(name, weight)
        self._done += 1
        self._progress(self._done, self._total)

    def _not_finite(self, name: str) -> ToolboxError:
        """Whose fault it is that a merged tensor holds NaN or infinity."""
        if name in self._entries and not bool(torch.isfinite(self._base.get(name)).all()):
            return CorruptError(
                _("The base model is broken: its {name} holds NaN or infinity.").format(name=name),
                _("Fetch the model again."),
            )
        return ToolboxError(
            _("The adapter is broken: merged into {name} it gives NaN or infinity.").format(name=name),
            _("Train it again with a lower learning rate, or take an earlier checkpoint."),
        )

    def _verified(self, shard: str, reader: Reader) -> str:
        """The hash of the base's file. Raises CorruptError where it was fetched with another."""
        if self._known.get(shard, reader.sha256) != reader.sha256:
            raise CorruptError(
                _("{path} is not what was fetched: its SHA-256 differs.").format(path=self._plan.model.path / shard),
                _("Fetch the model again; only what differs is fetched: download {model}").format(
                    model=self._plan.model.id
                ),
            )
        return reader.sha256

    def finish(self) -> None:
        """The index, where there are several files, and config.json."""
        if len(self._base.readers) > 1:
            index = {"metadata": {"total_size": self._bytes}, "weight_map": self._where}
            files.write_json(self._folder / INDEX, index, mode=0o644)
        self._changes.write_config(self._folder)
        if len(self._heads) == 2 and len(set(self._heads.values())) == 2:
            self._base.untie(self._folder)


def base_name(plan: MergePlan) -> str:
    """The base that the adapter is merged onto, in words."""
    if plan.dequantizes:
        return _("{model}, its {quantization} weights dequantised to {dtype}").format(
            model=plan.model.id, quantization=plan.quantization, dtype=plan.dtype
        )
    if plan.quantization != "none":
        return _("{model} in {dtype}, as it was before {quantization}").format(
            model=plan.model.id, quantization=plan.quantization, dtype=plan.dtype
        )
    return _("{model} in {dtype}").format(model=plan.model.id, dtype=plan.dtype)


def load_base(plan: MergePlan, onto: str = "") -> Any:
    """The base model that the adapter is merged onto, or the other one: in 4 bits, or as it was before."""
    from toolbox import loading

    device = loading.torch_device(plan.device.kind, plan.device.index)
    quantization = plan.BitsAndBytesConfig if (onto or plan.onto) == "dequantized" else None
    scores = methods.scores(plan.adapter)
    return loading.base_model(plan.model.path, plan.dtype, device, quantization or None, scores=scores)
