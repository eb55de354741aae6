"""Evaluation suites: the shipped ones, a person's own files and folders, every row checked (`evaluate --suite`)."""

import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolbox import embedded, files, plugins
from toolbox.config import Home
from toolbox.datasets.reading import no_rows
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _
from toolbox.suites import catalogue, rows
from toolbox.suites.catalogue import CATALOGUE
from toolbox.suites.kind import Kind
from toolbox.suites.kinds import KINDS


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation that was found: what it measures, on the rows of which file."""

    name: str
    kind: str
    """A name of KINDS, or of a plugin's suite."""
    path: Path
    """Its rows; of a plugin's suite the plugin's own file."""
    items: int = 1
    """Rows there are; of a plugin's suite nobody knows."""
    metrics: list[str] = []
    """What an answer to a question is measured by, beside exact match."""
    samples: int = 1
    """Programs drawn for each task; 1: the greedy one."""

    @property
    def sha256(self) -> str:
        """Of its file; of a folder, of the list of its files with theirs."""
        if self.path.is_file():
            return files.sha256(self.path)
        listed = sorted(path for path in self.path.rglob("*") if path.is_file())
        lines = (f"{files.sha256(path)}  {path.relative_to(self.path)}\n" for path in listed)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def resolve(name: str, home: Home) -> Suite:
    """The suite that a person means: a shipped one or one of the catalogue by name; a file, whose content tells what
    it measures; or a folder whose files are one suite together, as MMLU's subjects.

    Raises NotFoundError naming what there is, InputError naming the first row that can't be used.
    """
    if name in embedded.MEASURED:
        path = embedded.MEASURED[name]
    elif (path := Path(name).expanduser().resolve()).is_file() or _of_folder(path):
        name = str(path)
    elif name in CATALOGUE:
        path = catalogue.find(name, home)
        if path.is_dir() and len(alone := _suites_in(path)) == 1:  # a person's own folder of one file
            (path,) = alone
    elif name in plugins.added("suite"):
        return Suite(name=name, kind=name, path=plugins.file_of("suite", name))
    else:
        raise _unknown(name)
    kind = (_of_folder(path) if path.is_dir() else kind_of(path)) or KINDS["perplexity"]
    if (one := kind.whole(path)) != path:
        path, name = one, name if name in CATALOGUE else str(one)
    if not (items := len(kind.read(path))):
        raise no_rows(path)
    return Suite(name=name, kind=kind.name, path=path, items=items)


def resolve_all(words: Sequence[str], home: Home) -> list[Suite]:
    """The suites of all words, each once; a folder stands for every suite in it, at any depth, or is one by itself.

    Raises as `resolve` does, and NotFoundError for a folder without any.
    """
    found: dict[Path | str, Suite] = {}
    for word in words:
        names = [word]
        folder = Path(word).expanduser()
        if word not in embedded.MEASURED and folder.is_dir():
            names = _names_in(folder)
        for suite in (resolve(name, home) for name in names):
            found.setdefault(suite.name, suite)
    return list(found.values())


def refuse_unmasked(chosen: Sequence[Suite]) -> None:
    """Raises InputError for a suite that a masked model (BERT's kind) can't be measured with."""
    for suite in chosen:
        if suite.kind not in KINDS or not KINDS[suite.kind].masked:
            raise InputError(
                _("A masked model fills blanks and writes no texts: {suite} can't measure it.").format(
                    suite=Path(suite.name).name
                ),
                _("Measure it with CrowS-Pairs: --suite crows_pairs_anonymized.csv"),
            )


def kind_of(path: Path) -> Kind | None:
    """The kind that a file's content looks like; None where it looks like none."""
    return _told(path, *rows.beginning(path))


def _told(path: Path, head: bytes, first: dict[str, Any]) -> Kind | None:
    return next((kind for kind in KINDS.values() if kind.looks_like(path, head, first)), None)


def _unknown(name: str) -> NotFoundError:
    """With what was probably meant."""
    if Path(name).suffix or "/" in name:
        return NotFoundError(
            _("There is no file or folder {path}.").format(path=name),
            _("Check the path; or name a suite that --list-suites shows."),
        )
    known = [*embedded.SUITES, *CATALOGUE, *plugins.added("suite")]
    plain = {_plain(one): one for one in known}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    if near:
        return NotFoundError(
            _("There is no suite {name!r}; is {near} meant?").format(name=name, near=plain[near[0]]),
            _("Suites: {names}; or name a file of rows, or a folder of them.").format(names=", ".join(known)),
        )
    return NotFoundError(
        _("There is no suite {name!r}.").format(name=name),
        _("Suites: {names}; or name a file of rows, or a folder of them.").format(names=", ".join(known)),
    )


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _of_folder(folder: Path) -> Kind | None:
    """The kind of a folder that is one suite: all its suites are of a kind whose files belong together."""
    return _together(_suites_in(folder), folder) if folder.is_dir() else None


def _together(found: dict[Path, Kind], folder: Path) -> Kind | None:
    kinds = [kind for path, kind in found.items() if path.is_relative_to(folder)]
    together = len(kinds) > 1 and all(kind is kinds[0] for kind in kinds)
    return kinds[0] if together and kinds[0].folders else None


def _names_in(folder: Path) -> list[str]:
    """The suites of a folder: itself, or each folder in it that is one, the outermost, and the files beside them.

    Raises NotFoundError where there are none.
    """
    found = _suites_in(folder)
    if not found:
        raise NotFoundError(
            _("There is no suite in {folder}.").format(folder=folder),
            _("A suite is a file of rows, as JSONL, JSON or CSV."),
        )
    whole = [one for one in sorted({parent for path in found for parent in path.parents}) if _together(found, one)]
    inside = [one for one in whole if one.is_relative_to(folder)]
    names = (next((one for one in inside if path.is_relative_to(one)), path) for path in found)
    return list(dict.fromkeys(map(str, names)))


def _suites_in(folder: Path) -> dict[Path, Kind]:
    """The files of a folder, at any depth, that look like a suite; what is something else lies there in peace.

    So does plain text beside other suites, which is what their authors say of them, and a split to train on.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        told = rows.told_of(path)
        if told and (kind := _told(path, *told)):
            found[path] = kind
    asked = {path: found[path] for path in rows.asked(list(found), folder)}
    return {path: kind for path, kind in asked.items() if kind.name != "text"} or asked
