"""A job's way to its first step: what importing thousands of modules can do without. `job.py` begins it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_begun = False


def begin() -> None:
    """Hold garbage collection until `end`, in a process that is a job's own.

    Modules are no garbage, and looking through them again and again was a quarter of the CPU time of importing torch,
    transformers and peft (4.6 s against 6.0 s).
    """
    global _begun
    _begun = True
    gc.disable()


def leave_out(module: str) -> None:
    """Let `import module` fail from now on, as where it is not installed; nothing happens in a process of others.

    For what libraries import wherever it is, needed or not. None in `sys.modules` is Python's own way to say so.
    """
    if _begun:
        sys.modules.setdefault(module, None)  # type: ignore[arg-type]


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """`leave_out`, in any process and only for as long as this lasts; a module that is there already stays there."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


def end() -> None:
    """Collect garbage again; what is there by now stays to the end, and is looked through no more."""
    if _begun and not gc.isenabled():
        gc.freeze()
        gc.enable()
