"""一锤定音 (yichuidingyin): one key from a bare machine to a fine-tuned, proven, served model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolbox.datasets.hub import DatasetHub
    from toolbox.errors import ToolboxError
    from toolbox.face.models import LanguageModel, apply_tuner, load_model
    from toolbox.face.trainers import DPOTrainer, SFTTrainer, Trainer
    from toolbox.face.verbs import evaluate, merge

__version__ = "0.1.0"

__all__ = [
    "DPOTrainer", "DatasetHub", "LanguageModel", "SFTTrainer", "ToolboxError", "Trainer", "apply_tuner", "evaluate",
    "load_model", "merge",
]  # fmt: skip

_NOUNS = {
    "DatasetHub": "datasets.hub", "ToolboxError": "errors",
    "LanguageModel": "face.models", "apply_tuner": "face.models", "load_model": "face.models",
    "DPOTrainer": "face.trainers", "SFTTrainer": "face.trainers", "Trainer": "face.trainers",
    "evaluate": "face.verbs", "merge": "face.verbs",
}  # fmt: skip
"""What `import toolbox` offers, and the module it comes from; imported when it is first asked for (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in _NOUNS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"toolbox.{_NOUNS[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NOUNS})
