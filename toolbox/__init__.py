"""一锤定音 (yichuidingyin): one key from a bare machine to a fine-tuned, proven, served model."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NOUNS = {"DatasetHub": "toolbox.datasets.hub"}
"""What `import toolbox` offers, and the module it comes from; imported when it is first asked for."""


def __getattr__(name: str) -> Any:
    if name not in _NOUNS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_NOUNS[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_NOUNS]
