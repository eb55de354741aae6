"""A line of the registry, checked whoever wrote it: nothing of it is more than a name or a number."""

import re
from collections.abc import Mapping
from typing import Literal, get_args

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import _

Modality = Literal["text", "vision", "video", "audio", "omni"]
NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+/|-]{0,119}")
LARGEST_B = 1e5
"""More parameters than this, in billions, no row may claim."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is known by name."""

    huggingface: str
    modelscope: str
    """Its id on either hub; empty where it has none there."""
    family: str
    model_type: str
    """transformers' name of its architecture; empty where transformers has none."""
    architecture: str
    native: bool
    """Whether transformers loads it with classes of its own; others need their repository's code, never run here."""
    modality: Modality
    task: str
    domain: tuple[str, ...]
    quantised: str
    """How its weights are packed already, as awq; empty: they are not."""
    params_b: float
    """Parameters in billions, as its name or its card says."""
    active_b: float
    """Of them, those that a token meets, of a mixture of experts; 0: all."""
    licence: str
    """As its card names it; empty: not known here."""
    shape: str
    """The entry of shapes.json that it has, or the language model's and the vision tower's with a + between them;
    empty: none is known."""

    @property
    def name(self) -> str:
        """The id it is shown by."""
        return self.huggingface or self.modelscope

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.huggingface, self.modelscope)))

    @property
    def tunable(self) -> bool:
        """Whether it can be fine-tuned here at all."""
        return self.native and not self.quantised


def read(row: Mapping[str, str]) -> Model:
    """A row of a table. Raises InputError naming the cell that can't be."""
    huggingface, modelscope = _id(row, "huggingface"), _id(row, "modelscope")
    if not (huggingface or modelscope):
        raise _wrong("huggingface", "")
    return Model(
        huggingface=huggingface,
        modelscope=modelscope,
        family=_word(row, "family"),
        model_type=_word(row, "model_type"),
        architecture=_word(row, "architecture"),
        native=_one_of(row, "native", ("yes", "no")) == "yes",
        modality=_one_of(row, "modality", get_args(Modality)),  # type: ignore[arg-type]
        task=_word(row, "task"),
        domain=tuple(filter(None, _word(row, "domain").split("|"))),
        quantised=_word(row, "quantised"),
        params_b=_billions(row, "params_b", least=1e-6),
        active_b=_billions(row, "active_b"),
        licence=_word(row, "licence"),
        shape=_word(row, "shape"),
    )


def _id(row: Mapping[str, str], key: str) -> str:
    value = row.get(key) or ""
    if value and not NAME.fullmatch(value):
        raise _wrong(key, value)
    return value


def _word(row: Mapping[str, str], key: str) -> str:
    value = row.get(key) or ""
    if value and not WORD.fullmatch(value):
        raise _wrong(key, value)
    return value


def _one_of(row: Mapping[str, str], key: str, values: tuple[str, ...]) -> str:
    if (value := row.get(key) or "") not in values:
        raise _wrong(key, value)
    return value


def _billions(row: Mapping[str, str], key: str, least: float = 0.0) -> float:
    try:
        number = float(row.get(key) or 0)
    except ValueError:
        number = -1.0
    if not least <= number <= LARGEST_B:
        raise _wrong(key, row.get(key) or "")
    return number


def _wrong(key: str, value: str) -> InputError:
    return InputError(
        _("{key} can't be {value!r}.").format(key=key, value=value[:60]),
        _("Columns are those of toolbox/registry/models.csv."),
    )
