"""Evaluation suites: the shipped ones, a person's own files and folders, every row checked (`evaluate --suite`)."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

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
    elif name in plugins.added("suite"):
        return Suite(name=name, kind=name, path=plugins.file_of("suite", name))
    else:
        known = [*embedded.SUITES, *CATALOGUE, *plugins.added("suite")]
        raise NotFoundError(
            _("There is no suite {name!r}.").format(name=name),
            _("Suites: {names}; or name a file of rows, or a folder of them.").format(names=", ".join(known)),
        )
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
        if word not in embedded.MEASURED and folder.is_dir() and not _of_folder(folder):
            names = [str(path) for path in _suites_in(folder)]
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
    head, first = rows.beginning(path)
    return next((kind for kind in KINDS.values() if kind.looks_like(path, head, first)), None)


def _of_folder(folder: Path) -> Kind | None:
    """The kind of a folder that is one suite: all its suites are of a kind whose files belong together."""
    if not folder.is_dir():
        return None
    kinds = [kind_of(path) for path in _suites_in(folder)]
    together = len(kinds) > 1 and all(kind is kinds[0] for kind in kinds)
    return kinds[0] if together and kinds[0] and kinds[0].folders else None


def _suites_in(folder: Path) -> list[Path]:
    """The files of a folder that look like a suite; what is something else lies there in peace."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        try:
            if kind_of(path):
                found.append(path)
        except (InputError, NotFoundError):  # an archive, a picture, an empty file
            continue
    if not found:
        raise NotFoundError(
            _("There is no suite in {folder}.").format(folder=folder),
            _("A suite is a file of rows, as JSONL, JSON or CSV."),
        )
    return found
