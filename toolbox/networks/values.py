"""A config.json's values with what its class gives where it says nothing, under transformers' usual names."""

from functools import cache
from pathlib import Path
from typing import Any

import msgspec

DEFAULTS = Path(__file__).with_name("defaults.json")
"""Made by scripts/config_defaults.py."""
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config")


class Known(msgspec.Struct, frozen=True):
    """What transformers' class for a `model_type` says."""

    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    """The usual name of a field to the one that its config.json has."""
    parts: dict[str, dict[str, Any]] = {}
    """What is made of a part that is not there at all."""


@cache
def _all() -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(DEFAULTS.read_bytes(), type=dict[str, msgspec.Raw])


@cache
def known(model_type: str) -> Known:
    """Empty for a type that transformers did not know when the file was made."""
    raw = _all().get(model_type)
    return msgspec.json.decode(raw, type=Known) if raw else Known()


class Values:
    """Values that are read with a kind in mind: what is missing or of another kind is as good as not there."""

    def __init__(self, config: dict[str, Any], model_type: str = "") -> None:
        kind = config.get("model_type") or model_type
        self.kind = kind if isinstance(kind, str) else ""
        self._own = config
        self._known = known(self.kind)

    def get(self, name: str) -> Any:
        """Where the file has the field under its own or its usual name, that, be it null; else the class's default."""
        other = self._known.names.get(name, name)
        for key in (name, other):
            if key in self._own:
                return self._own[key]
        return self._known.values.get(name, self._known.values.get(other))

    def number(self, *names: str, default: int = 0) -> int:
        """The first that is a whole number of 0 or more; of a list with one a layer, the largest."""
        for name in names:
            value = self.get(name)
            if isinstance(value, list) and value and all(type(item) is int for item in value):
                value = max(value)
            if type(value) is int and value >= 0:
                return value
        return default

    def share(self, name: str, default: float) -> float:
        value = self.get(name)
        return float(value) if type(value) in (int, float) and 0 <= value < 1 << 20 else default

    def flag(self, *names: str, default: bool = False) -> bool:
        return next((value for value in map(self.get, names) if isinstance(value, bool)), default)

    def text(self, *names: str, default: str = "") -> str:
        return next((value for value in map(self.get, names) if isinstance(value, str)), default)

    def numbers(self, name: str) -> list[int]:
        value = self.get(name)
        return value if isinstance(value, list) and all(type(item) is int for item in value) else []

    def words(self, name: str) -> list[str]:
        value = self.get(name)
        return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.get(name)
        return value if isinstance(value, dict) else {}

    def part(self, name: str) -> "Values | None":
        """A configuration within this one, or the class's own where it gives one."""
        inner, usual = self.get(name), self._known.parts.get(name, {})
        if isinstance(inner, dict):
            return Values(inner, usual.get("model_type", ""))
        return Values(usual) if usual else None

    def language(self) -> "Values":
        """The language model's part of a multimodal configuration, however deep; else this one."""
        found = next((part for name in TEXT_PARTS if (part := self.part(name))), None)
        return found.language() if found else self
