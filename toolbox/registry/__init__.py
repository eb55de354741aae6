"""Models known by name (`models search`, `plan --model OWNER/NAME`): the shipped table, and what `models refresh` lays
over it. Nothing here needs the model or a network.

`shapes` gives the facts of a model that is not here, `lookalikes` tells names that are nearly known ones, `refreshing`
reads another table.
"""

import csv
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from toolbox.config import Home
from toolbox.errors import NotFoundError
from toolbox.i18n import N_, _
from toolbox.registry import refreshing
from toolbox.registry.rows import Model, read

TABLE = Path(__file__).with_name("models.csv")
"""Ids that ms-swift and LLaMA-Factory register (public repositories, read in 2026); by scripts/registry.py."""

PACKED = re.compile(r"[-_](fp8|awq|gptq|bnb|aqlm|int[48]|[48]bits?|nvfp4|mxfp4)\b.*$", re.IGNORECASE)
"""What quantised models add to their originals' names."""

KINDS = {
    "chat": N_("Text: chat"),
    "base": N_("Text: base, to be trained further"),
    "code": N_("Text: code"),
    "reasoning": N_("Text: mathematics and reasoning"),
    "other": N_("Text: translation, guarding and the like"),
    "vision": N_("Pictures and text"),
    "ocr": N_("Pictures and text: reading documents"),
    "video": N_("Video, pictures and text"),
    "audio": N_("Sound and text"),
    "omni": N_("Text, pictures, sound and video"),
}
"""What a model is for, in the order in which catalogues show it."""


def every(home: Home) -> tuple[Model, ...]:
    """All known models: the shipped ones, with a refreshed table's rows over them. Milliseconds."""
    rows = {model.name.lower(): model for model in shipped()}
    rows |= {model.name.lower(): model for model in refreshing.overlay(home)}
    return tuple(rows.values())


@functools.cache
def shipped() -> tuple[Model, ...]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return tuple(read(row) for row in csv.DictReader(file))


def find(name: str, home: Home) -> Model | None:
    """The model that either hub knows by that id, or did before it was renamed; case makes no difference, as there."""
    wanted = name.lower().replace("meta-llama/meta-llama-3.1", "meta-llama/llama-3.1")
    refreshed = next((model for model in refreshing.overlay(home) if wanted in _ids(model)), None)
    return refreshed or next((model for model in _lines_with(wanted) if wanted in _ids(model)), None)


def original(name: str) -> str:
    """The model that a quantised one was made from, as its name tells; empty where that is not known."""
    bare = PACKED.sub("", name)
    found = (model for model in _lines_with(bare.lower()) if bare.lower() in _ids(model)) if bare != name else ()
    return next((model.name for model in found if not model.quantised), "")


def _lines_with(text: str) -> Iterator[Model]:
    """The shipped models in whose line `text` stands; the other lines are not even split."""
    table = TABLE.read_text(encoding="utf-8")
    lowered, columns = table.lower(), table.partition("\n")[0].split(",")
    at = lowered.find(text) if "/" in text and text.isascii() else -1
    while at >= 0:
        begins, ends = table.rfind("\n", 0, at) + 1, table.find("\n", at)
        yield read(dict(zip(columns, table[begins:ends].split(","), strict=True)))
        at = lowered.find(text, ends)


def _ids(model: Model) -> list[str]:
    return [name.lower() for name in model.names]


def get(name: str, home: Home) -> Model:
    """As `find`. Raises NotFoundError, with the nearest name that there is."""
    from toolbox.registry import lookalikes

    if model := find(name, home):
        return model
    near = lookalikes.nearest(name, home)
    raise NotFoundError(
        _("The registry has no model {name!r}.").format(name=name),
        _("Did you mean {name}?").format(name=near) if near else _("Look for it: models search WORD"),
    )


class Wanted(msgspec.Struct, kw_only=True, frozen=True):
    """What a search asks for; what is left out matches all."""

    words: Sequence[str] = ()
    """Each has to be in an id, or to be a family, a kind or a licence."""
    kind: str = ""
    """One of `KINDS`."""
    family: str = ""
    modality: str = ""
    licence: str = ""
    smallest: float = 0.0
    """Parameters in billions."""
    largest: float = float("inf")
    tunable: bool = False
    """Only what can be fine-tuned here: not quantised, and known to transformers."""


def search(wanted: Wanted, home: Home) -> list[Model]:
    """The models asked for, by kind, family and size."""
    found = [model for model in every(home) if _is_wanted(model, wanted)]
    order = list(KINDS)
    return sorted(found, key=lambda model: (order.index(kind(model)), model.family, model.params_b, model.name.lower()))


def _is_wanted(model: Model, wanted: Wanted) -> bool:
    return (
        wanted.smallest <= model.params_b <= wanted.largest
        and wanted.kind in ("", kind(model))
        and wanted.family.lower() in ("", model.family.lower(), model.model_type.lower())
        and wanted.modality in ("", model.modality)
        and (not wanted.licence or wanted.licence.lower() in model.licence.lower())
        and (not wanted.tunable or model.tunable)
        and all(_has(model, word) for word in wanted.words)
    )


def _has(model: Model, word: str) -> bool:
    """Whether a word of a search is about the model; `7b` stands alone in a name, so that it is no part of 27b."""
    word = word.lower()
    if re.fullmatch(r"\d+(\.\d+)?[bm]", word):
        return any(word in re.split(r"[-_/]", name.lower()) for name in model.names)
    said = (model.family, model.model_type, model.modality, model.task, model.licence, kind(model), *model.domain)
    return any(word in name.lower() for name in model.names) or word in (text.lower() for text in said)


def kind(model: Model) -> str:
    """Which of `KINDS` it is."""
    if model.modality != "text":
        return "ocr" if model.task == "ocr" else model.modality
    if "coding" in model.domain:
        return "code"
    if model.task == "reasoning" or "math" in model.domain:
        return "reasoning"
    return model.task if model.task in ("chat", "base") else "other"
