"""Two confined processes: the candidate, which holds generated code, and the judge, which tests what it answers.

Generated code can end, rewrite or print whatever it likes: what counts is written by another process, which takes
plain values from it and nothing else.
"""

import builtins
import importlib
import inspect
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from toolbox.sandbox import arrays
from toolbox.sandbox.values import Ended, Link, decode, encode

DETAIL = 300
"""Characters kept of what went wrong."""


def candidate(code: str, link: Link) -> None:
    """Run `code`, tell which names it left, then answer calls of them until nobody calls any more."""
    module = types.ModuleType("candidate")
    sys.modules[module.__name__] = module
    try:
        exec(compile(code, "candidate.py", "exec"), module.__dict__)
        link.send(["loaded", {name: _described(value) for name, value in module.__dict__.items() if name[:2] != "__"}])
    except BaseException as error:  # a SystemExit too is the candidate's failure
        link.send(["raised", *_told(error)])
        return
    while True:
        try:
            name, positional, named = link.receive()
        except Ended:
            return
        try:
            value = module.__dict__[name](*decode(positional), **decode(named))
            link.send(["returned", encode(value)])
        except BaseException as error:
            link.send(["raised", *_told(error)])


def judge(test: str, link: Link, process: int) -> dict[str, str]:
    """Run `test` against the candidate in `process`; {outcome: passed | failed | ended | time, detail}."""
    detail = ""
    try:
        kind, *rest = link.receive()
        if kind != "loaded":
            return {"outcome": "failed", "detail": ": ".join(map(str, rest))[:DETAIL]}
        sys.modules["numpy"] = arrays.module()
        space = {name: _standin(name, value, link) for name, value in _usable(rest[0], test).items()}
        exec(compile(test, "test.py", "exec"), {**space, "__name__": "test"})
    except BaseException as error:  # whatever a test raises is its verdict
        detail = ": ".join([_line(error, test), *_told(error)])[:DETAIL]
    if link.ended:  # even where the test caught that
        return _ending(process)
    return {"outcome": "failed" if detail else "passed", "detail": detail}


def _line(error: BaseException, test: str) -> str:
    """The line of the test that was not met."""
    numbers = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == "test.py" and at.lineno]
    return test.splitlines()[numbers[-1] - 1].strip() if numbers else "test"


def _described(value: Any) -> Any:
    """A name's value as the judge needs it: {"call"}, {"module"}, {"value"}, or None for what can't be told."""
    if inspect.ismodule(value):
        return {"module": value.__name__}
    if callable(value):
        return {"call": True}
    try:
        return {"value": encode(value)}
    except (TypeError, RecursionError):
        return None


def _usable(told: dict[str, Any], test: str) -> dict[str, Any]:
    """The candidate's names, but those of the language, with which it would judge itself: `def abs(x): return 0`.

    Unless the test uses no other name of the candidate's: a task of MBPP asks for a `sum` of its own.
    """
    own = {name: value for name, value in told.items() if not hasattr(builtins, name)}
    return own if any(re.search(rf"\b{re.escape(name)}\b", test) for name in own) else told


def _standin(name: str, described: Any, link: Link) -> Any:
    """What a test finds under a name of the candidate's; modules are the judge's own, of the standard library."""
    match described:
        case {"module": str(module)} if module.partition(".")[0] in sys.stdlib_module_names:
            return importlib.import_module(module)
        case {"call": True}:
            return _caller(name, link)
        case {"value": value}:
            return decode(value)
    return None


def _caller(name: str, link: Link) -> Callable[..., Any]:
    def call(*positional: Any, **named: Any) -> Any:
        link.send([name, encode(list(positional)), encode(named)])
        match link.receive():
            case ["returned", value]:
                return decode(value)
            case ["raised", str(kind), str(text)]:
                raise _error(kind)(text)
        raise ValueError("an answer that is none")

    return call


def _error(kind: str) -> type[Exception]:
    """The built-in error of that name, since a test may wait for it; else a RuntimeError."""
    found = getattr(builtins, kind, RuntimeError)
    plain = (
        isinstance(found, type)
        and issubclass(found, Exception)
        and not issubclass(found, (UnicodeError, ExceptionGroup))
    )
    return found if plain else RuntimeError


def _told(error: BaseException) -> tuple[str, str]:
    try:
        return type(error).__name__, str(error)[:DETAIL]
    except Exception:  # str() is the candidate's own code
        return type(error).__name__, ""


def _ending(process: int) -> dict[str, str]:
    """Why a candidate no longer answers."""
    status = os.waitpid(process, 0)[1]
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return {"outcome": "time", "detail": ""}
    return {"outcome": "ended", "detail": signal.strsignal(number) or "" if number else "it ended before its tests did"}
