"""Where the files of a data set lie that a person names: shipped, on a path, in an index, named, or downloaded."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from toolbox import embedded
from toolbox.config import Home
from toolbox.datasets import info, registry
from toolbox.datasets.addresses import Address, Hub
from toolbox.errors import InputError, NotFoundError
from toolbox.hub import mark_used
from toolbox.i18n import _

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".jsonl.gz", ".json.gz", ".txt")
NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "configuration.json", "config.json", "state.json")
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SHARD = re.compile(r"(.*?)[-_]?\d{3,}(?:-of-\d{3,})?")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a data set, and what is known of it beforehand."""

    paths: list[Path]
    columns: dict[str, str] = {}
    samples: int | None = None


class NotDownloadedError(NotFoundError):
    """A data set that a hub has and this machine has not: `id` is its name there, `hub` where it has to come from."""

    def __init__(self, name: str, id: str, hub: Hub) -> None:
        self.id, self.hub = id, hub
        source = f" --source {hub}" if hub else ""
        super().__init__(
            _("The data set {name} is not on this machine.").format(name=name),
            _("Fetch it: {command}").format(command=f"download {id} --type dataset{source}"),
        )


def find(address: Address, home: Home) -> Found:
    """The files that an address means.

    Raises NotFoundError naming what there is (NotDownloadedError where a hub has it), InputError where a folder holds
    several sets.
    """
    name = address.name
    if not address.hub:
        if name in embedded.DATASETS:
            return Found(paths=[Path(embedded.DATASETS[name])])
        if (path := Path(name).expanduser()).exists():
            return _at(path.resolve(), address, "train")
        if named := registry.find(name, home):
            return _named(named, address, home)
    if (path := home.datasets / name).is_dir():
        mark_used(path, home)
        return _at(path, address, "train")
    if HUB_ID.fullmatch(name) and (address.hub or not name.endswith(SUFFIXES)):
        raise NotDownloadedError(name, name, address.hub)
    raise _unknown(name, home)


def known(home: Home) -> list[str]:
    """The names of all data sets on this machine to train on, as `resolve` takes them."""
    return [*embedded.TRAINING, *(named.name for named in registry.own(home) if named.file), *_downloaded(home)]


def _downloaded(home: Home) -> list[str]:
    folders = {path.parent.relative_to(home.datasets) for path in _files(home.datasets)}
    return sorted(str(folder) for folder in folders if folder.parts and not folder.parts[0].startswith("."))


def _unknown(name: str, home: Home) -> NotFoundError:
    names = known(home)
    near = difflib.get_close_matches(name, names, n=1) or difflib.get_close_matches(
        registry.key(name), [registry.key(named.name) for named in registry.shipped()], n=1
    )
    remedy = _("Did you mean {name}?").format(name=near[0]) if near else ""
    return NotFoundError(
        _("There is no data set {name!r}: neither a file nor a downloaded one.").format(name=name),
        remedy or _("Known: {names}; or name a file, or download one.").format(names=", ".join(names)),
    )


def _at(path: Path, address: Address, split: str) -> Found:
    """A file, an index, or the one set of a folder."""
    if path.is_dir() and address.subset and (path / info.NAME).is_file():
        path = path / info.NAME
    if path.is_dir():
        return Found(paths=_of_folder(path, address.subset, split))
    return _indexed(path, address) if info.is_index(path) else Found(paths=[path])


def _indexed(index: Path, address: Address) -> Found:
    entry = info.find(index, address.subset)
    if not entry.file_name:
        hub: Hub = "huggingface" if entry.hf_hub_url else "modelscope"
        raise NotDownloadedError(address.subset, entry.hf_hub_url or entry.ms_hub_url, hub)
    path = index.parent / entry.file_name
    if not path.resolve().is_relative_to(index.parent.resolve()):
        raise InputError(
            _("{path}, data set {name}: its file lies outside of the folder.").format(path=index, name=address.subset),
            _("Name the file itself."),
        )
    if not path.exists():
        raise NotFoundError(
            _("{path}, data set {name}: there is no file {file}.").format(
                path=index, name=address.subset, file=entry.file_name
            ),
            _("Put it beside the index."),
        )
    paths = [path] if path.is_file() else _of_folder(path, entry.subset or "", entry.split)
    return Found(paths=paths, columns=entry.mapping(), samples=entry.num_samples)


def _named(named: registry.Named, address: Address, home: Home) -> Found:
    """A data set of the registry, where its files are here."""
    if named.file:
        path = Path(named.file).expanduser()
        if not path.exists():
            raise NotFoundError(
                _("The data set {name} is said to lie in {path}, and there is nothing.").format(
                    name=named.name, path=path
                ),
                _("Put the file back, or mend {path}.").format(path=home.datasets / f"{named.name}.yaml"),
            )
        found = _at(path.resolve(), address, named.split)
        return msgspec.structs.replace(found, columns={**found.columns, **named.columns})
    for id in filter(None, (named.modelscope, named.huggingface)):
        if (folder := home.datasets / id).is_dir():
            mark_used(folder, home)
            return Found(paths=_of_folder(folder, address.subset, named.split), columns=named.columns)
    hub: Hub = "" if named.modelscope == named.huggingface else "modelscope" if named.modelscope else "huggingface"
    raise NotDownloadedError(named.name, named.hub_id(hub or "auto"), hub)


def _files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.name.lower().endswith(SUFFIXES) and path.is_file())
    return sorted(path for path in found if path.name not in NOT_ROWS and not path.name.lower().startswith("readme"))


def _of_folder(folder: Path, subset: str, split: str) -> list[Path]:
    """The file, or the shards, of the one set in a folder; its training part where there are several parts."""
    found = _files(folder)
    found = [path for path in found if path.suffix != ".txt"] or found
    if subset:
        found = [
            path for path in found if subset in path.relative_to(folder).with_suffix("").as_posix().split("/")
        ] or [path for path in found if subset in path.name]
    training = [path for path in found if re.match(rf"{re.escape(split)}\b", path.name.lower().replace("_", "-"))]
    chosen = training or found
    if len(chosen) == 1 or _are_shards(chosen):
        return chosen
    if not chosen:
        raise InputError(
            _("{folder} holds no file of rows.").format(folder=folder),
            _("Files of rows end in: {endings}.").format(endings=" ".join(SUFFIXES)),
        )
    names = ", ".join(str(path.relative_to(folder)) for path in chosen[:5])
    raise InputError(
        _("{folder} holds several files: {names}.").format(folder=folder, names=names), _("Name one of them.")
    )


def _are_shards(paths: Sequence[Path]) -> bool:
    """Whether files are numbered parts of one, as train-00000-of-00002.parquet."""
    stems = {(path.parent, match[1]) for path in paths if (match := _SHARD.fullmatch(path.stem))}
    return len(stems) == 1 and all(_SHARD.fullmatch(path.stem) for path in paths)
