"""What a model's config.json says, read with suspicion: any hub, and anybody, may have written it."""

from pathlib import Path
from typing import Any

from toolbox.errors import InputError
from toolbox.i18n import _

INNER_CONFIGS = ("text_config", "llm_config", "language_config")
"""Where multimodal models keep the configuration of their language model."""


class Config:
    """Its values: whatever is missing or of the wrong kind is an InputError with its name."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self._path, self._values = path, values

    def number(self, *names: str, default: int | None = None) -> int:
        """The first of `names` that is set, a whole number above 0; of a list with a number a layer, the largest."""
        for name in names:
            value = self._values.get(name)
            if isinstance(value, list) and value and all(type(item) is int for item in value):
                value = max(value)
            if value is None:
                continue
            if type(value) is not int or value < 1:
                raise self._wrong(name)
            return value
        if default is None:
            raise self._wrong(names[0])
        return default

    def text(self, name: str) -> str:
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            raise self._wrong(name)
        return value or ""

    def first(self, name: str) -> str:
        value = self._values.get(name) or [""]
        if not isinstance(value, list) or not isinstance(value[0], str):
            raise self._wrong(name)
        return value[0]

    def _wrong(self, name: str) -> InputError:
        return InputError(
            _("{path} does not say {name}, or not as it should.").format(path=self._path, name=name),
            _("Take a model in the transformers format, or fetch this one again."),
        )


def inner(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a multimodal configuration, without the names that describe the whole."""
    for name in INNER_CONFIGS:
        if isinstance(inner := config.get(name), dict):
            return {key: value for key, value in inner.items() if key not in ("architectures", "model_type")}
    return {}


def quantization(config: dict[str, Any]) -> str:
    """`quant_method` of a model that is quantised already; empty for none."""
    said = config.get("quantization_config")
    return str(said.get("quant_method", "")) if isinstance(said, dict) else ""
