"""What a report leaves out, since people publish it: folders of this machine, its name, addresses that it serves at."""

import os
import re
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath
from typing import Any

import msgspec

from toolbox.facts import Facts
from toolbox.ports import LOOPBACK
from toolbox.runs import ROOT

HOME = "HOME"
"""Stands for the folder that holds everything, whatever it is called here or there."""
LONG_PATH = re.compile(r"(?<![\w/.:~\\-])/(?:[^\s/\"'`<>|*?:;,()\[\]{}=]+/)+([^\s/\"'`<>|*?:;,()\[\]{}]*)")
"""An absolute path of two parts or more; its last part tells what it is."""
OF_A_HOME = re.compile(r".*/(runs/\d{8}-\d{4}-[\w.-]+(?:/.*)?)", re.DOTALL)
"""A path in the folder of a run, of whatever machine."""
ADDRESS = re.compile(
    r"(https?://)(?!(?:127\.0\.0\.1|localhost|\[::1\])[:/])((?:\d{1,3}\.){3}\d{1,3}|\[[0-9A-Fa-f:]+\])"
)
TELLING_NAME = re.compile(r"(?=.*[\d-])[\w.-]{5,}")
"""A host name that no other word is likely to equal: `localhost` and `ubuntu` say nothing."""


class Mask:
    """Takes this machine out of texts: HOME for the home folder, file names for other paths. Callable on plain data."""

    def __init__(self, home: Path, plain: Iterable[object] = (), host: str = "") -> None:
        """`plain`: data whose texts that begin with / are paths as they stand, with whatever characters."""
        self._prefixes = [(f"{folder}{os.sep}", f"{HOME}/") for folder in {str(home), str(home.resolve())}]
        self._prefixes += [(f"{ROOT}{os.sep}", "")]
        whole = {str(home): HOME, str(home.resolve()): HOME, str(ROOT): "."}
        paths = {text for data in plain for text in _texts(data) if text.startswith(os.sep) and "\n" not in text}
        whole |= {path: _short(path, self._prefixes) for path in paths if len(PurePath(path).parts) > 2}
        self._whole = dict(sorted(whole.items(), key=lambda pair: len(pair[0]), reverse=True))
        host = host or socket.gethostname()
        self._host = re.compile(rf"(?<![\w.-]){re.escape(host)}(?![\w-])") if TELLING_NAME.fullmatch(host) else None

    def __call__(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self(item) for item in value]
        return self.text(value) if isinstance(value, str) else value

    def text(self, text: str) -> str:
        if os.sep in text:
            text = self._without_paths(text)
        return self._host.sub("HOST", text) if self._host else text

    def _without_paths(self, text: str) -> str:
        if text in self._whole:
            return self._whole[text]
        for path, short in self._whole.items():
            if path in text:
                text = re.sub(rf"(?<![\w/]){re.escape(path)}(?![\w-])", short.replace("\\", r"\\"), text)
        for prefix, short in self._prefixes:
            text = text.replace(prefix, short)
        return LONG_PATH.sub(lambda found: _short(found[0], []), ADDRESS.sub(r"\1HOST", text))

    def facts(self, facts: Facts) -> Facts:
        """A run's facts without this machine. `run` stays, for the files that its sections read."""
        status = msgspec.structs.replace(
            facts.status, error=self(facts.status.error), model=self(facts.status.model), phase=self(facts.status.phase)
        )
        plan, env, result = (self(data) for data in (facts.plan, facts.env, facts.result))
        return msgspec.structs.replace(facts, plan=plan, env=env, result=result, status=status)


def is_local(url: str) -> bool:
    """Whether an address is this machine's own, which says nothing of where it stands."""
    return f"//{LOOPBACK}" in url


def _short(path: str, prefixes: list[tuple[str, str]]) -> str:
    """A path by what it is: below the home, below this program, in a run's folder, else its last part."""
    for prefix, short in prefixes:
        if path.startswith(prefix):
            return short + path[len(prefix) :]
    if found := OF_A_HOME.fullmatch(path):
        return f"{HOME}/{found[1]}"
    return PurePath(path).name


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, str):
        yield value
