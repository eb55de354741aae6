"""`doctor`: what this machine and this installation are, what is wrong with them, and what to do about it."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Command, Session
from toolbox.errors import DONE, FAILED
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from toolbox.config import Home
    from toolbox.device import Machine
    from toolbox.interpreters import Interpreter

PYTHON = (3, 11)
TORCH_TIMEOUT_S = 120.0
"""A first import from a slow disk takes a while; a hanging GPU driver would take for ever."""
ROOM_BYTES = 10 << 30
"""Less than this is no room for a small model, its checkpoints and what is merged from it."""
PREPARE = "bash yichuidingyin.sh --prepare"
MAIN_LOCKS = ("cpu", "cuda", "macos")
"""What --prepare installs by itself; locks on top of it have to be named."""
COMPILER = "apt install g++ python3-dev"
TORCH = "import torch; print(torch.__version__, torch.version.cuda or '-', torch.cuda.is_available())"


class Options(msgspec.Struct, kw_only=True):
    """`doctor` takes no options of its own."""


class Check(msgspec.Struct, kw_only=True, frozen=True):
    """One thing looked at. `required`: without it nothing works here; `remedy` is for what is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = False


def run(options: Options, session: Session) -> dict[str, Any]:
    """Show every check; exit status 1 where one fails that nothing works without."""
    from toolbox import device

    session.say(_("Looking at this machine …"))
    found = [_without_needless_remedy(check) for check in checks(device.probe(), session.home)]
    session.table(_("Self-check"), ("", _("What"), _("Found")), [_row(check) for check in found])
    wrong = [check for check in found if not check.ok]
    for check in wrong:
        told = _("✗ {name}: {detail}").format(name=check.name, detail=check.detail)
        session.say(told + (f"\n  → {check.remedy}" if check.remedy else ""))
    if not wrong:
        session.say(_("All is well."))
    status = FAILED if any(check.required for check in wrong) else DONE
    return {"checks": msgspec.to_builtins(found), "exit_status": status}


def checks(machine: "Machine", home: "Home") -> Iterator[Check]:
    """All checks, in the order they are shown."""
    yield python(sys.version_info[:3])
    yield environment(Path(sys.prefix), _locks())
    yield torch(machine, _import_torch)
    yield from hardware(machine)
    yield folder(home)
    yield disk(home)
    yield settings(home)
    yield embedded_model(home)
    yield sandbox()
    yield from engines(machine, home)
    yield from plugged()


def python(version: tuple[int, ...]) -> Check:
    return Check(
        name="Python",
        ok=version[:2] == PYTHON,
        detail=".".join(map(str, version)),
        remedy=_("Start with yichuidingyin.sh, which finds Python 3.11."),
        required=True,
    )


def environment(prefix: Path, locks: Path) -> Check:
    """Whether the packages are those of the lock that the environment was made from; it keeps a copy of it."""
    stamps = sorted((prefix / "locks").glob("*.txt"))
    stale = [stamp.stem for stamp in stamps if not _same(stamp, locks / stamp.name)]
    further = [name for name in stale if name not in MAIN_LOCKS]
    detail = ", ".join(stamp.stem for stamp in stamps) or _("made by hand, not from a lock")
    pinned = (prefix / "pinned").exists()
    if stale:
        detail = _("older than its lock: {locks}").format(locks=", ".join(stale))
    if pinned:
        detail += _(", pinned")
    return Check(
        name=_("Environment"),
        ok=pinned or not stale,
        detail=f"{prefix} ({detail})",
        remedy=_("Bring it up to date: {command}").format(command=" ".join([PREPARE, *further])),
    )


def torch(machine: "Machine", answer: Callable[[], tuple[bool, str]]) -> Check:
    """Whether torch can be imported, in a process of its own, and is built for the GPU that is here."""
    imported, said = answer()
    if not imported:
        return Check(
            name="torch",
            ok=False,
            detail=said,
            remedy=_("Prepare the environment again: {command}").format(command=PREPARE),
            required=True,
        )
    version, cuda, sees_gpu = said.split()
    return Check(
        name="torch",
        ok=machine.best.kind != "cuda" or sees_gpu == "True",
        detail=f"{version}, " + (_("CPU build") if cuda == "-" else f"CUDA {cuda}"),
        remedy=_("It does not see the GPU; prepare the environment for CUDA: {command}").format(
            command=f"YCDY_LOCK=cuda {PREPARE}"
        ),
        required=True,
    )


def hardware(machine: "Machine") -> Iterator[Check]:
    """The GPUs, or why there is none; the processor and the memory."""
    from toolbox import units

    for gpu in (device for device in machine.devices if device.kind != "cpu"):
        free = _("{free} of {total} free").format(
            free=units.size(gpu.memory_free_bytes), total=units.size(gpu.memory_total_bytes)
        )
        capability = _("compute capability {version}").format(version=gpu.compute_capability)
        facts = [gpu.name, free, capability if gpu.compute_capability else "", "bf16" if gpu.bf16 else _("no bf16")]
        busy = [_("{name} (pid {pid}) holds {used}").format(
            name=process.name or "?", pid=process.pid, used=units.size(process.used_bytes)
        ) for process in gpu.processes]  # fmt: skip
        yield Check(name=f"GPU {gpu.index}", ok=True, detail=", ".join(filter(None, [*facts, *busy])))
    if machine.driver:
        yield Check(name=_("NVIDIA driver"), ok=True, detail=machine.driver)
    if machine.reason or machine.best.kind == "cpu":
        yield Check(name="GPU", ok=not machine.reason, detail=machine.reason or _("none; the processor is used"))
    for cpu in (device for device in machine.devices if device.kind == "cpu"):
        cores = _("{count} cores").format(count=cpu.cores)
        yield Check(name=_("Processor"), ok=True, detail=f"{cpu.name}, {cores}" + (", bf16" if cpu.bf16 else ""))
        memory = _("{free} of {total} free").format(
            free=units.size(cpu.memory_free_bytes), total=units.size(cpu.memory_total_bytes)
        )
        yield Check(name=_("Memory"), ok=True, detail=memory)


def folder(home: "Home") -> Check:
    """Whether something can be written where everything is kept."""
    import tempfile

    from toolbox.errors import InputError

    try:
        with tempfile.TemporaryFile(dir=home.prepare().path):
            return Check(name=_("Data folder"), ok=True, detail=str(home.path), required=True)
    except InputError as error:
        return Check(name=_("Data folder"), ok=False, detail=error.message, remedy=error.remedy, required=True)
    except OSError as error:
        detail = f"{home.path}: {error.strerror}"
        remedy = _("Name another one with --home DIR or YCDY_HOME.")
        return Check(name=_("Data folder"), ok=False, detail=detail, remedy=remedy, required=True)


def disk(home: "Home") -> Check:
    from toolbox import files, units

    free = files.free_bytes(home.path)
    return Check(
        name=_("Disk"),
        ok=free >= ROOM_BYTES,
        detail=_("{free} free").format(free=units.size(free)),
        remedy=_("Free some space, or name a folder on another disk with --home DIR."),
    )


def settings(home: "Home") -> Check:
    torn = home.settings_torn()
    path = home.path / "settings.json"
    return Check(
        name=_("Settings"),
        ok=not torn,
        detail=_("{path} can't be read; the default settings hold.").format(path=path) if torn else _("readable"),
        remedy=_("Delete {path}, or set it anew with: config set").format(path=path),
    )


def embedded_model(home: "Home") -> Check:
    """Whether the model that came with the package is whole."""
    from toolbox import models
    from toolbox.errors import ToolboxError

    name = _("Embedded model")
    try:
        facts = models.resolve("demo", home)
    except ToolboxError as error:
        return Check(name=name, ok=False, detail=error.message, remedy=_("Install the package again."), required=True)
    return Check(name=name, ok=True, detail=f"{facts.architecture}, {facts.parameters / 1e6:.1f}M")


def sandbox() -> Check:
    """Whether programs that a model writes can be measured (`evaluate --suite HumanEval.jsonl`); tried, not guessed."""
    from toolbox.errors import InputError
    from toolbox.sandbox import running

    name = _("Generated code")
    try:
        held = ", ".join(running.check())
    except InputError as error:
        return Check(name=name, ok=sys.platform != "linux", detail=str(error), remedy=error.remedy)
    return Check(name=name, ok=True, detail=_("confined by {held}").format(held=held))


def engines(machine: "Machine", home: "Home") -> Iterator[Check]:
    """All engines, and tools with an environment of their own; each installed one is started, side by side.

    One that is not installed is missed only where there is a GPU and no other engine for it.
    """
    from concurrent.futures import ThreadPoolExecutor

    from toolbox import interpreters
    from toolbox.engines import ENGINES, PREFERRED

    cuda = machine.best.kind == "cuda"
    found = [interpreters.find(name, home) for name in interpreters.names()]
    missed = PREFERRED[0] if cuda and not any(each.python for each in found if each.name in PREFERRED) else ""
    for engine in (engine for engine in ENGINES.values() if not engine.own_interpreter):
        python = engine.interpreter(home)
        yield Check(
            name=_("Engine {name}").format(name=engine.name),
            ok=python is not None,
            detail=str(python or _("not installed")),
            remedy=_("Prepare the environment again: {command}").format(command=PREPARE),
        )
    with ThreadPoolExecutor() as pool:
        yield from pool.map(lambda each: interpreter(each, home, cuda, each.name == missed), found)


def interpreter(found: "Interpreter", home: "Home", cuda: bool, missed: bool) -> Check:
    """Whether an environment of its own is whole, starts, is what its lock says, and can do its work here."""
    from toolbox import interpreters
    from toolbox.engines import ENGINES, preparing
    from toolbox.errors import ToolboxError

    engine = ENGINES.get(found.name)
    name = (_("Engine {name}") if engine else _("Tool {name}")).format(name=found.name)
    remedy = _("Install it: {command}").format(command=preparing(found.name, home))
    needs_gpu = "" if cuda or engine is None or not engine.needs_cuda else _("it needs an NVIDIA GPU")
    if found.python is None:
        state = _("half made") if found.half_made else _("not installed")
        ok = not (found.half_made or missed)
        return Check(name=name, ok=ok, detail=", ".join(filter(None, [state, needs_gpu])), remedy=remedy)
    try:
        version, builds = interpreters.ask(found)
    except ToolboxError as error:
        return Check(name=name, ok=False, detail=error.message, remedy=remedy)
    ok, detail = True, [version, str(found.folder), needs_gpu, _("pinned") if found.pinned else ""]
    if found.stale and not found.pinned:
        ok, remedy = False, _("Bring it up to date: {command}").format(command=preparing(found.name, home))
        detail += [_("older than its lock")]
    elif engine and engine.compiles and cuda and not builds:
        ok, remedy = False, _("Install a C++ compiler and Python's headers: {command}").format(command=COMPILER)
        detail += [_("it builds kernels when it starts, and there is no compiler, or no Python.h")]
    return Check(name=name, ok=ok, detail=", ".join(filter(None, detail)), remedy=remedy)


def plugged() -> Iterator[Check]:
    """Plugins that installed packages offer: none runs before it is named, and none is hidden."""
    from toolbox import plugins

    for kind, name, package in plugins.packages():
        taken = name in plugins.BUILT_IN.get(kind, {})
        detail = _("{package}; the name is a built-in's, which is taken").format(package=package) if taken else package
        yield Check(
            name=_("Plugin {kind} {name}").format(kind=kind, name=name),
            ok=not taken,
            detail=detail,
            remedy=_("Ask the package's author for another name."),
        )


def _locks() -> Path:
    from toolbox.runs import ROOT

    return ROOT / "locks"


def _import_torch() -> tuple[bool, str]:
    """(whether it worked, what it printed or its last complaint)."""
    import os
    import subprocess

    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH],
            capture_output=True, text=True, timeout=TORCH_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
            env={**os.environ, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, _("does not answer within {seconds} s").format(seconds=f"{TORCH_TIMEOUT_S:.0f}")
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    return done.returncode == 0, lines[-1] if lines else _("ended with status {status}").format(status=done.returncode)


def _without_needless_remedy(check: Check) -> Check:
    return msgspec.structs.replace(check, remedy="") if check.ok else check


def _same(one: Path, other: Path) -> bool:
    return other.is_file() and one.read_bytes() == other.read_bytes()


def _row(check: Check) -> tuple[str, str, str]:
    return ("✓" if check.ok else "✗", check.name, check.detail)


COMMANDS = (Command("doctor", N_("Check this machine and this installation"), Options, run),)
