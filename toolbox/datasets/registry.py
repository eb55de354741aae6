"""Named data sets: the shipped table, and a person's own from YAML files in HOME/datasets or from Python."""

import csv
import functools
import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox import files, plugins
from toolbox.config import Home
from toolbox.datasets import columns
from toolbox.errors import InputError
from toolbox.i18n import _

TABLE = Path(__file__).with_name("registry.csv")
"""Data sets that ms-swift and LLaMA-Factory register (public repositories, read November 2026): ids, subsets, tasks and
column maps as they state them. `reads`: whether their rows need no preparation of their own beyond columns."""

TASKS = (
    "sft", "pretrain", "preference", "kto", "agent", "reasoning", "rlvr", "classification", "caption", "grounding",
    "multimodal-vqa", "ocr", "video", "audio", "rerank", "embedding",
)  # fmt: skip

NAME = re.compile(r"[\w][\w.-]*")


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A data set that has a name of its own."""

    name: str
    also: str = ""
    """Another name it is known by."""
    modelscope: str = ""
    huggingface: str = ""
    file: str = ""
    """Its file or folder, where it is on this machine already."""
    subsets: tuple[str, ...] = ()
    split: str = "train"
    task: str = "sft"
    language: str = ""
    modality: str = "text"
    columns: dict[str, str] = {}
    reads: bool = True
    own: bool = False

    def hub_id(self, source: str) -> str:
        """Its id on the hub that is asked, or on the other one."""
        ids = (self.modelscope, self.huggingface)
        return next(filter(None, ids if source != "huggingface" else ids[::-1]), "")

    def matches(self, word: str) -> bool:
        """Whether a word of a search is about it: part of a name or id, its task, or its language.

        Two letters are a language: they have to stand alone in a name (zh is in alpaca-zh, not in Zhihu-KOL).
        """
        word = key(word)
        if word in (self.task, self.modality, *self.language.split("|")):
            return True
        names = [key(name) for name in (self.name, self.also, self.modelscope, self.huggingface) if name]
        return any(word in (re.split(r"[-/.]", name) if len(word) < 3 else name) for name in names)


class Described(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """HOME/datasets/NAME.yaml: a data set of one's own."""

    file: str = ""
    modelscope: str = ""
    huggingface: str = ""
    columns: dict[str, str] = {}
    split: str = "train"
    task: str = "sft"
    language: str = ""


Task = Literal["sft", "pretrain", "preference", "kto"]
Made = Callable[[], Iterable[Mapping[str, Any]]]
"""What a data set is that a plugin brings: `task_type` beside it is taken to be sft."""


def register(name: str, dataset_fn: Made, task_type: str = "sft") -> None:
    """Give the rows that a function makes a name, in this process.

    Raises InputError for a name or task that can't be.
    """
    if not NAME.fullmatch(name):
        raise InputError(_("{name!r} is no name for a data set.").format(name=name), _("Use letters, digits, - and _."))
    _check_task(name, task_type)
    made = functools.partial(dataset_fn)
    made.task_type = task_type  # type: ignore[attr-defined]
    made.__module__ = getattr(dataset_fn, "__module__", "")
    plugins.register("dataset", key(name))(made)


def every(home: Home) -> list[Named]:
    """All named data sets, a person's own first. Raises InputError naming an own file that is wrong."""
    return [*own(home), *shipped()]


def find(name: str, home: Home) -> Named | None:
    """The data set of that name; `-`, `_` and case make no difference."""
    if made := next((known for known in plugins.names("dataset") if key(known) == key(name)), ""):
        return _write(name, plugins.find("dataset", made), home)
    if (made_file := home.datasets / ".made" / f"{key(name)}.jsonl").is_file():  # by another process
        return Named(name=name, file=str(made_file), own=True)
    return next((named for named in every(home) if key(name) in (key(named.name), key(named.also))), None)


def search(words: Iterable[str], home: Home) -> list[Named]:
    """The data sets that every word is about."""
    wanted = list(words)
    return [named for named in every(home) if all(named.matches(word) for word in wanted)]


def key(name: str) -> str:
    return name.lower().replace("_", "-")


@functools.cache
def shipped() -> tuple[Named, ...]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(
            Named(
                name=line["name"],
                also=line["also"],
                modelscope=line["modelscope"],
                huggingface=line["huggingface"],
                task=line["task"],
                modality=line["modality"],
                subsets=tuple(filter(None, line["subsets"].split("|"))),
                split=line["split"].split("|")[0],
                language=line["language"],
                columns=columns.parse(line["columns"].split()),
                reads=line["reads"] == "yes",
            )
            for line in csv.DictReader(file)
        )


def own(home: Home) -> list[Named]:
    """What `data add` wrote, or a person by hand. Raises InputError naming the file and the key that is wrong."""
    return [_own(path) for path in sorted(home.datasets.glob("*.yaml"))]


def add(name: str, described: Described, home: Home) -> Path:
    """Write HOME/datasets/NAME.yaml; its path. Raises InputError where that name is no name, or is taken."""
    if not NAME.fullmatch(name):
        raise InputError(_("{name!r} is no name for a data set.").format(name=name), _("Use letters, digits, - and _."))
    if taken := next((named for named in every(home) if key(name) in (key(named.name), key(named.also))), None):
        raise InputError(_("There is a data set {name!r} already.").format(name=taken.name), _("Choose another name."))
    _check_task(name, described.task)
    path = home.prepare().datasets / f"{name}.yaml"
    files.write_bytes(path, msgspec.yaml.encode({k: v for k, v in msgspec.structs.asdict(described).items() if v}))
    return path


def _own(path: Path) -> Named:
    try:
        said = msgspec.yaml.decode(path.read_bytes(), type=Described)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(
            _("{path} does not describe a data set: {reason}.").format(path=path, reason=error),
            _("Keys: {keys}.").format(keys=" ".join(Described.__struct_fields__)),
        ) from error
    columns.check_keys(said.columns)
    _check_task(path.stem, said.task)
    return Named(name=path.stem, own=True, **msgspec.structs.asdict(said))


def _check_task(name: str, task: str) -> None:
    if task not in TASKS:
        raise InputError(
            _("The data set {name} can't have the task {task!r}.").format(name=name, task=task),
            _("Tasks: {tasks}.").format(tasks=" ".join(TASKS)),
        )


def keep(rows: Iterable[Mapping[str, Any]], home: Home) -> str:
    """Rows of a program as a file in HOME, in constant memory; the name by which `find` knows it, here and elsewhere.

    Raises InputError naming the row that is no JSON.
    """
    folder, digest = _made_folder(home), hashlib.sha256()
    scratch = folder / f"rows-{uuid.uuid4().hex}.jsonl"
    with files.whole_file(scratch) as file:
        for line in _lines(rows):
            digest.update(line)
            file.write(line)
    name = f"rows-{digest.hexdigest()[:12]}"
    scratch.replace(folder / f"{name}.jsonl")
    return name


def _write(name: str, made: Made, home: Home) -> Named:
    """The rows of a registered function as a file in HOME: a job is another process and knows no function of ours."""
    task = getattr(made, "task_type", "sft")
    _check_task(name, task)
    kept = _made_folder(home) / f"{keep(made(), home)}.jsonl"
    return Named(name=name, file=str(kept.replace(kept.with_name(f"{key(name)}.jsonl"))), task=task, own=True)


def _made_folder(home: Home) -> Path:
    """Where the rows of programs lie."""
    return home.prepare().datasets / ".made"


def _lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    for number, row in enumerate(rows, 1):
        try:
            yield msgspec.json.encode(row, enc_hook=_plain) + b"\n"
        except (TypeError, ValueError) as error:
            raise InputError(
                _("Row {number} can't be written as JSON: {reason}.").format(number=number, reason=error),
                _("Give texts, numbers, lists and dicts."),
            ) from error


def _plain(value: Any) -> Any:
    """An array or a number of NumPy or torch as Python's own. Raises TypeError for anything else."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(type(value).__name__)
