"""Program code that a model's repository brings: what of it would run, and whether a person agreed to that
(`models trust`). Consent is given to hashes, not to names: a changed file is another program.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.i18n import _

Code = Mapping[str, str]
"""Python files below a model's folder, each with its SHA-256."""


class Consent(msgspec.Struct, frozen=True):
    """A person has read these files, or trusts who made them, and typed their repository's name."""

    name: str
    code: dict[str, str]
    given_at: float


_ADMITTED: dict[Path, Code] = {}
"""What may run in this process, by model folder."""


def of(folder: Path) -> dict[str, str]:
    """Every Python file below `folder`: what one of them imports is run too. Raises InputError for one that is a link,
    whose content may be another's tomorrow."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                _("{path} is a link, so nobody can agree to what it leads to.").format(path=path),
                _("Put the file itself there."),
            )
        found[str(path.relative_to(folder))] = files.sha256(path)
    return found


def from_elsewhere(config: Mapping[str, Any]) -> str:
    """The other repository whose code a config.json asks for, as `OTHER/NAME--module.Class`; empty where none."""
    mapped = config.get("auto_map")
    texts = list(_texts(list(mapped.values()) if isinstance(mapped, dict) else []))
    return next((text for text in texts if "--" in text), "")


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, str):
        yield value


def fingerprint(code: Code) -> str:
    """One hash of all names and hashes."""
    lines = "".join(f"{sha256}  {name}\n" for name, sha256 in sorted(code.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def consents(home: Home) -> dict[str, Consent]:
    """What was agreed to in this home, by fingerprint. Raises InputError where the list is another user's."""
    path = _list(home)
    try:
        files.refuse_foreign(path)
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Consent])
    except (FileNotFoundError, msgspec.DecodeError):
        return {}


def agree(home: Home, name: str, code: Code) -> None:
    given = Consent(name, dict(code), time.time())
    files.write_json(_list(home.prepare()), {**consents(home), fingerprint(code): given})


def withdraw(home: Home, name: str) -> int:
    """Forget every consent given under that name; how many there were."""
    known = consents(home)
    kept = {key: consent for key, consent in known.items() if consent.name != name}
    if len(kept) < len(known):
        files.write_json(_list(home), kept)
    return len(known) - len(kept)


def _list(home: Home) -> Path:
    return home.path / "trusted.json"


def admit(folder: Path, code: Code, cache: Path) -> None:
    """Let `code` run in this process; transformers keeps its copies in `cache`, not where other programs find them."""
    if code:
        _ADMITTED[folder] = code
        os.environ["HF_MODULES_CACHE"] = str(cache)


def copy(model: Path, made: Path) -> None:
    """Put the code that was admitted for `model` beside what was made of it, where it may run too."""
    for name in _ADMITTED.get(model, {}):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(model / name, made / name)
        _ADMITTED[made] = _ADMITTED[model]


def may_run(folder: Path) -> bool:
    """Whether the code in `folder` was admitted, and is still that code.

    Raises InputError where it has changed since.
    """
    if folder not in _ADMITTED:
        return False
    if of(folder) != _ADMITTED[folder]:
        raise InputError(
            _("The program code in {path} has changed since it was agreed to.").format(path=folder),
            _("Look at what changed, and agree to it anew: models trust"),
        )
    return True


def refuse_kernels(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a config that names attention of a hub: transformers would fetch it and run it, whatever trust was
    given."""
    if kernel := next(_kernels(config), ""):
        raise InputError(
            _("{path} names a program of others for its attention, {kernel}, which is never run here.").format(
                path=folder / "config.json", kernel=repr(kernel)
            ),
            _("Delete that line of config.json: transformers has attention of its own."),
        )


def _kernels(config: Any) -> Iterator[str]:
    """Kernels of a hub that a config asks for, at any depth: OWNER/NAME, run as it comes, whatever trust was given."""
    for key, value in config.items() if isinstance(config, dict) else ():
        named = value if isinstance(value, dict) else {"": value}
        if "_implementation" in key:
            yield from (name for name in named.values() if isinstance(name, str) and "/" in name)
        yield from _kernels(value)
