"""Names that come from outside: repository ids typed by a person, file paths listed by a hub."""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from toolbox.errors import HubError, InputError
from toolbox.i18n import _

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_ADDRESS = re.compile(r"https?://[^/]+/(?:models/|datasets/)?([^/?#]+/[^/?#]+?)(?:/(?:summary|files|tree/[^/]+))?/?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
"""Weights that run code when they are loaded."""
UNWANTED = (".gitattributes", ".gitignore", ".msc", ".mv", ".mdl")
"""Housekeeping of git and of the hubs."""


def repository(text: str) -> str:
    """`OWNER/NAME` from what was typed: the id itself, or a hub page's address. Raises InputError on anything else."""
    address = _ADDRESS.fullmatch(text)
    repo_id = address[1] if address else text
    parts = repo_id.split("/")
    if len(parts) == 2 and all(_PART.fullmatch(part) and ".." not in part for part in parts):
        return repo_id
    raise InputError(
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
    )
    if not harmless:
        raise HubError(
            _("The hub lists a file with a dangerous name, {name!r}; nothing of it was fetched.").format(
                name=path[:120]
            ),
            _("Do not use this repository; report it to the hub."),
        )
    return path


def select(paths: Iterable[str], include: Sequence[str]) -> tuple[list[str], list[str]]:
    """(wanted, pickles left out) of a repository's files.

    Without patterns everything but housekeeping is wanted, and pickled weights only where there are no safetensors.
    """
    known = [path for path in paths if path not in UNWANTED]
    if include:
        return [path for path in known if _matches(path, include)], []
    if not any(path.endswith(".safetensors") for path in known):
        return known, []
    pickles = [path for path in known if _matches(path, PICKLES)]
    return [path for path in known if path not in pickles], pickles


def _matches(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)
