"""Environments of their own, for engines and tools that can't share ours: HOME/engines/NAME, from locks/NAME.txt."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from toolbox import engines, environment
from toolbox.config import Home
from toolbox.errors import InputError, Interrupted, NotFoundError, ToolboxError
from toolbox.i18n import _, language

OURS = frozenset({"cpu", "cuda", "macos", "dev", "trackers"})
"""Locks of the environment that this program itself runs in."""
INSTALLED_BYTES = {
    "vllm": 9_100_000_000, "sglang": 11_000_000_000, "lmdeploy": 9_100_000_000, "llmcompressor-cpu": 1_460_000_000,
    "llamacpp": 290_000_000, "lm-eval-cpu": 1_730_000_000, "evalscope": 1_110_000_000,
}  # fmt: skip
"""What an environment took on disk once it was made, in bytes: `du` after an install from its lock."""
ROOM = 2.2
"""While it is made, its packages lie on the disk as pip's cache and as pip's scratch too, both compressed."""
START_TIMEOUT_S = 60.0
ASK = """
import importlib.metadata, os, sys, sysconfig
print(os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))
print(importlib.metadata.version(sys.argv[1]) if len(sys.argv) > 1 else "")
"""


class Interpreter(msgspec.Struct, frozen=True, kw_only=True):
    """One environment as it lies here. `python` is None where it is not installed, or was not made to its end."""

    name: str
    lock: Path
    folder: Path
    python: Path | None
    pinned: bool
    """It was told to stay as it is, whatever the lock says."""

    @property
    def package(self) -> str:
        """Its main package; of the llama.cpp engine none has its name."""
        return self.name.removesuffix("-cpu")

    @property
    def half_made(self) -> bool:
        return (self.folder / "preparing").exists()

    @property
    def stale(self) -> bool:
        """Whether it was made from another lock than there is now."""
        copy = self.folder / "locks" / self.lock.name
        return copy.is_file() and copy.read_bytes() != self.lock.read_bytes()

    @property
    def before(self) -> Path:
        """What was there before the last change."""
        return self.folder.with_name(self.folder.name + ".before")

    def pins(self) -> dict[str, str]:
        """Versions by package, as the lock has them."""
        return dict(re.findall(r"^([A-Za-z0-9._-]+)(?:\[[^]]*])?==(\S+)", self.lock.read_text(), re.MULTILINE))


def names() -> list[str]:
    """All environments there can be."""
    return sorted(path.stem for path in _locks().glob("*.txt") if path.stem not in OURS)


def find(name: str, home: Home, environ: Mapping[str, str] = os.environ) -> Interpreter:
    """The environment of that name, wherever it lies. Raises NotFoundError naming those there can be."""
    if name not in names():
        raise NotFoundError(
            _("There is no engine or tool {name!r} to install.").format(name=name),
            _("There are: {names}.").format(names=", ".join(names())),
        )
    python = engines.own_python(name, home, environ)
    folder = python.parent.parent if python else home.engines / name
    return Interpreter(
        name=name, lock=_locks() / f"{name}.txt", folder=folder, python=python, pinned=(folder / "pinned").exists()
    )


def ask(found: Interpreter) -> tuple[str, bool]:
    """The version of its main package, as the interpreter itself says, and whether C code can be built for it.

    The version is empty where the lock has no package of that name. Raises ToolboxError where the interpreter does not
    start, or lacks the package.
    """
    main = [found.package] if found.package in found.pins() else []
    try:
        done = subprocess.run(
            [str(found.python), "-I", "-c", ASK, *main], capture_output=True, text=True, timeout=START_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ToolboxError(_("{python} does not start: {reason}.").format(python=found.python, reason=error)) from error
    if done.returncode:
        reason = (done.stderr.strip() or "?").splitlines()[-1]
        raise ToolboxError(_("{python} does not start: {reason}.").format(python=found.python, reason=reason))
    headers, version = done.stdout.split("\n")[:2]
    compiler = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++")
    return version, headers == "True" and compiler is not None


def prepare(found: Interpreter, *words: str) -> None:
    """Make the environment, or change it, by the script that makes ours: whole, or as it was before.

    Ctrl-C and a kill leave what was there, and what pip fetched; the next call goes on from that. `words`: the script's
    own, "--prepare" if none. Raises InputError, Interrupted and ToolboxError as the script ended; it has said why.
    """
    scratch = found.folder.parent / f".{found.name}.tmp"  # a small /tmp could not hold what pip unpacks
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    settings = {
        "YCDY_PYTHON": getattr(sys, "_base_executable", sys.executable), **os.environ, "YCDY_LANG": language(),
        "YCDY_ENV": str(found.folder), "YCDY_LOCK": found.name, "TMPDIR": str(scratch),
    }  # fmt: skip
    command = ["bash", str(environment.ROOT / "yichuidingyin.sh"), *(words or ("--prepare",))]
    script = subprocess.Popen(
        command, env=settings, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        status = script.wait()
    except KeyboardInterrupt:
        os.killpg(script.pid, signal.SIGINT)
        script.wait()
        raise Interrupted(
            _("Stopped. {name} is as it was before.").format(name=found.name),
            _("What was fetched is kept; go on with: {command}").format(
                command=engines.preparing(found.name, Home(found.folder.parents[1]))
            ),
        ) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if status:
        kind = InputError if status == InputError.exit_status else ToolboxError
        raise kind(_("{name} was not changed; it is as it was before.").format(name=found.name), _("Why stands above."))


def _locks() -> Path:
    return environment.ROOT / "locks"
