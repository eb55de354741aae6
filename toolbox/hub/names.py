"""Names that come from outside: repository ids typed by a person, file paths listed by a hub."""

import fnmatch
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from toolbox.errors import HubError, InputError
from toolbox.i18n import _

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_PAGE = re.compile(
    r"(https?://([^/@]+))/(models/|datasets/)?([^/?#]+/[^/?#]+?)(?:/(?:summary|files|tree/([^/?#]+)))?/?(?:[?#].*)?"
)
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")

PICKLES = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.dill", "*.npy", "*.npz", "*.nemo", "*.mar",
)  # fmt: skip
"""What may run code when it is loaded: weights, states of optimizers and generators, arrays of objects."""
WEIGHTS = ("*.safetensors", "*.gguf")
"""Weights that are nothing but numbers."""
LONGEST = 1024
"""Bytes of a path below the copy's folder: far less than systems take, far more than hubs hold."""
UNWANTED = (".gitattributes", ".gitignore", ".msc", ".mv", ".mdl")
"""Housekeeping of git and of the hubs."""


HUBS = {"hf": "huggingface", "huggingface": "huggingface", "ms": "modelscope", "modelscope": "modelscope"}
"""What may stand before `::` in an address."""
PAGES = {"modelscope.cn": "modelscope", "huggingface.co": "huggingface", "hf.co": "huggingface"}
"""Whose pages have addresses on which hosts."""


_KINDS: dict[str | None, Literal["", "model", "dataset"]] = {"models/": "model", "datasets/": "dataset", None: ""}


class Address(msgspec.Struct, frozen=True):
    """What a person named; empty: it was not said."""

    id: str
    source: str = ""
    kind: Literal["", "model", "dataset"] = ""
    revision: str = ""


def address(text: str) -> Address:
    """`[hf|ms]::OWNER/NAME`, or the address of its page on a hub or a mirror. Raises InputError on anything else."""
    prefix, colons, rest = text.rpartition("::")
    hub = HUBS.get(prefix.lower(), "")
    if colons and not hub:
        raise _no_repository(text)
    page = _PAGE.fullmatch(rest)
    if not page:
        return Address(_checked(rest, text), hub)
    endpoint, host, section, repo_id, branch = page.groups()
    known = next((name for ending, name in PAGES.items() if f".{host}".endswith(f".{ending}")), "")
    source = known if known and hub in ("", known) else f"{'ms' if hub == 'modelscope' else 'hf'}::{endpoint}"
    return Address(
        _checked(repo_id, text), source, _KINDS[section], branch if branch not in ("main", "master", None) else ""
    )


def repository(text: str) -> str:
    """`OWNER/NAME` from what was typed. Raises InputError where it names no repository."""
    return address(text).id


def _checked(repo_id: str, text: str) -> str:
    parts = repo_id.split("/")
    if len(parts) == 2 and all(_PART.fullmatch(part) and ".." not in part for part in parts):
        return repo_id
    raise _no_repository(text)


def _no_repository(text: str) -> InputError:
    return InputError(
        _("{name!r} is not the name of a repository.").format(name=text[:120]),
        _("A name is OWNER/NAME, like Qwen/Qwen2.5-7B-Instruct: letters, digits, dot, dash and underscore."),
    )


def revision(text: str) -> str:
    """A branch, tag or commit as typed; empty: the hub's default. Raises InputError on what can't be one."""
    if text and (not _REVISION.fullmatch(text) or ".." in text):
        raise InputError(
            _("{name!r} is not the name of a revision.").format(name=text[:120]),
            _("A revision is a branch, a tag or a commit."),
        )
    return text


def safe(path: str) -> str:
    """`path` as a hub lists it, if it stays inside the folder. Raises HubError otherwise."""
    parts = PurePosixPath(path).parts
    harmless = (
        parts
        and not path.startswith("/")
        and "\\" not in path
        and path.isprintable()
        and "/".join(parts) == path
        and not {".", ".."} & set(parts)
        and all(len(part.encode()) < 240 for part in parts)
        and len(path.encode()) <= LONGEST
    )
    if not harmless:
        raise _dangerous(path)
    return path


def distinct(paths: Sequence[str], ours: Sequence[str]) -> None:
    """Raise HubError where two of `paths` would be one file on some disk, one is the folder of another, or one ends
    like a file of `ours`.

    Disks of Macs and of Windows take no notice of case, Macs' none of how accents are composed: there the second file
    would take the place of the first, after that was hashed.
    """
    seen: dict[str, str] = {}
    for path in paths:
        alike = unicodedata.normalize("NFKC", path).casefold()
        if seen.setdefault(alike, path) != path or alike.endswith(tuple(ours)):
            raise _dangerous(path)
    for path in seen:
        if any(str(parent) in seen for parent in PurePosixPath(path).parents):
            raise _dangerous(seen[path])


def _dangerous(path: str) -> HubError:
    return HubError(
        _("The hub lists a file with a dangerous name, {name!r}; nothing of it was fetched.").format(name=path[:120]),
        _("Do not use this repository; report it to the hub."),
    )


def select(paths: Iterable[str], include: Sequence[str], kind: str = "model") -> tuple[list[str], list[str]]:
    """(wanted, pickles left out) of a repository's files.

    Without patterns everything but housekeeping and pickles is wanted. Raises InputError where a model's weights are
    pickles and nothing else.
    """
    known = [path for path in paths if path not in UNWANTED]
    if include:
        return [path for path in known if _matches(path, include)], []
    pickles = [path for path in known if _matches(path, PICKLES)]
    wanted = [path for path in known if path not in pickles]
    if pickles and kind == "model" and not any(_matches(path, WEIGHTS) for path in known):
        raise InputError(
            _("Its weights are pickles only, which run code when they are loaded: {files}.").format(
                files=", ".join(pickles[:5])
            ),
            _(
                "Take a revision or a copy of the model with safetensors files; what is not loaded can be had by name:"
                " --include {name}"
            ).format(name=pickles[0]),
        )
    return wanted, pickles


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
