"""What is torn in a folder: wrong hashes, cut-off safetensors, missing shards (`cache verify`, `download FOLDER`)."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from toolbox import files, model_files
from toolbox.errors import CorruptError
from toolbox.hub.store import Copy
from toolbox.i18n import _


class Problem(msgspec.Struct, frozen=True):
    """A file, and what is wrong with it in the person's language."""

    file: str
    what: str


def changed(copy: Copy, progress: Callable[[int], None] = lambda size: None) -> Iterator[Problem]:
    """Files of a copy that are missing or not what was fetched; each one is hashed."""
    for record in copy.manifest.files if copy.manifest else ():
        file = copy.path / record.path
        if not file.is_file():
            yield Problem(record.path, _("missing"))
        elif (size := file.stat().st_size) != record.size:
            yield Problem(record.path, _("{size} bytes instead of {expected}").format(size=size, expected=record.size))
        elif files.sha256(file, progress) != record.sha256:
            yield Problem(record.path, _("the hash is wrong"))


def differing(
    folder: Path, hashes: Mapping[str, str], progress: Callable[[int], None] = lambda size: None
) -> Iterator[Problem]:
    """Files below `folder` that are missing or have not the SHA-256 that was noted of them."""
    for name, sha256 in hashes.items():
        file = folder / name
        if not file.is_file():
            yield Problem(name, _("missing"))
        elif files.sha256(file, progress) != sha256:
            yield Problem(name, _("the hash is wrong"))


def torn(folder: Path) -> Iterator[Problem]:
    """Weights of any folder that can't be loaded: safetensors that end early, shards that are not there."""
    for file in sorted(folder.rglob("*.safetensors")):
        try:
            model_files.header(file)
        except CorruptError:
            yield Problem(str(file.relative_to(folder)), _("truncated or torn"))
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        content = files.read_json(index)
        shards = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(shards, dict):
            yield Problem(str(index.relative_to(folder)), _("is not an index of shards"))
            continue
        for shard in sorted({str(shard) for shard in shards.values()}):
            if not (index.parent / shard).is_file():
                yield Problem(str((index.parent / shard).relative_to(folder)), _("missing shard"))
