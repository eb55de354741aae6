"""Names of models and data sets that are nearly known ones: misspelt, of another owner, with look-alike letters."""

import re
import unicodedata
from collections.abc import Iterable

from toolbox import registry
from toolbox.config import Home
from toolbox.datasets import registry as named
from toolbox.hub.store import Kind
from toolbox.i18n import _

NEAR = 2
"""Letters by which a name may differ to be taken for a slip."""
SAME_LOOK = str.maketrans({
    "0": "o", "1": "l", "i": "l", "а": "a", "е": "e", "о": "o", "р": "p", "с": "c", "х": "x", "у": "y", "і": "l",
    "ѕ": "s", "ӏ": "l", "ԛ": "q", "ԝ": "w", "α": "a", "ο": "o", "ε": "e", "ν": "v", "ι": "l", "κ": "k", "τ": "t",
})  # fmt: skip
"""Digits and Cyrillic and Greek letters that look like Latin ones (Unicode technical standard 39, confusables)."""
MIRRORS = {"unsloth", "mlx-community", "lmstudio-community", "bartowski", "nousresearch"}
"""Owners that are known to put up other owners' models; so may owners that have models in the registry."""


def warning(name: str, home: Home, kind: Kind = "model") -> str:
    """What is suspicious about a name that is not in the registry, in a sentence; empty where nothing is."""
    if "/" not in name or (kind == "model" and registry.find(name, home)):
        return ""
    owner, _slash, own = name.partition("/")
    ids = _ids(home, kind)
    if name.lower() in (known.lower() for known in ids):
        return ""
    if disguised := next((known for known in ids if _look(known) == _look(name)), ""):
        return _("{name!r} only looks like {known}: some of its letters are others.").format(name=name, known=disguised)
    if slip := _slip(name, ids):
        return _("{name} is not known, and {known} is: is it a slip?").format(name=name, known=slip)
    same = next((known for known in ids if known.partition("/")[2].lower() == own.lower()), "")
    if same and owner.lower() not in MIRRORS | {known.partition("/")[0].lower() for known in ids}:
        return _("{name} has the name of {known}, but another owner: whoever it is can put anything there.").format(
            name=name, known=same
        )
    return ""


def nearest(name: str, home: Home) -> str:
    """The known id that was most likely meant; empty where none is near."""
    ids = _ids(home, "model")
    if near := _slip(name, ids) or next((known for known in ids if _look(known) == _look(name)), ""):
        return near
    own = name.rpartition("/")[2].lower()
    return next((known for known in ids if own == known.rpartition("/")[2].lower()), "")


def _ids(home: Home, kind: Kind) -> list[str]:
    if kind == "dataset":
        return [id for known in named.shipped() for id in (known.modelscope, known.huggingface) if id]
    return [name for model in registry.every(home) for name in model.names]


def _slip(name: str, ids: Iterable[str]) -> str:
    """The id that differs in a letter or two and in no number: another number is another model."""
    numbers = re.findall(r"\d+", name)
    near = [
        (distance, known)
        for known in ids
        if abs(len(known) - len(name)) <= NEAR
        and re.findall(r"\d+", known) == numbers
        and (distance := _distance(known.lower(), name.lower())) <= NEAR
    ]
    return min(near, default=(0, ""))[1]


def _look(name: str) -> str:
    """The name as a hasty eye sees it."""
    return unicodedata.normalize("NFKC", name).lower().translate(SAME_LOOK).replace("rn", "m").replace("vv", "w")


def _distance(one: str, other: str) -> int:
    """Letters to change, add, leave out or swap (Damerau 1964, between neighbours)."""
    before: list[int] = []
    last = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        row = [i]
        for j, its in enumerate(other, start=1):
            steps = min(last[j] + 1, row[j - 1] + 1, last[j - 1] + (letter != its))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == its:
                steps = min(steps, before[j - 2] + 1)
            row.append(steps)
        before, last = last, row
    return last[-1]
