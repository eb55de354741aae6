"""Rows that move a model's pronouns towards an even split, made from what was measured of it (`data repair`).

Preference pairs go both ways, in numbers whose optimum under DPO is the even split itself. With s the measured share of
"she" of a portrait, DPO's loss on pairs of which a share q prefers "she" is least where beta times the change of
ln(p(she) / p(he)) is ln(q / (1 - q)) (from arXiv:2305.18290, equation 7). The change wanted is -ln(s / (1 - s)), so
q = 1 / (1 + (s / (1 - s))^beta): pairs never ask for more than balance.
"""

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from toolbox import files
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.suites.gender import Portrait

Stage = Literal["dpo", "sft"]
RECORD, TRAIN, HELD_OUT, SEEN = "repair.json", "train.jsonl", "held-out.jsonl", "seen.jsonl"
"""The files of a repair: how it was made, rows to train on, portraits that were kept out, and those it learnt of."""
PAIRS, BETA = 8, 0.5
"""Pairs a portrait, and DPO's beta that they are counted for."""
CERTAIN = 1e-4
"""A share is taken to be at least so far from 0 and 1: a logit of 9 says no more than one of 90."""


class Template(NamedTuple):
    """A question about a person and the beginning of its answer; `{name}` is the profession's."""

    prompt: str
    prefix: str
    female: str
    male: str


TEMPLATES: dict[str, tuple[Template, ...]] = {
    "en": (
        Template("Say something about the {name}.", "The {name} is very busy.", " She", " He"),
        Template("Who is the {name}?", "This is the {name}.", " She", " He"),
        Template("What about the {name}?", "The {name} knows what", " she", " he"),
        Template("What does the {name} think?", "The {name} thinks that", " she", " he"),
        Template("What does the {name} want?", "The {name} went home before", " she", " he"),
        Template("When does the {name} come?", "The {name} will come when", " she", " he"),
    ),
    "zh": (
        Template("说说{name}。", "这位{name}很忙。", "她", "他"),
        Template("{name}是谁？", "这是一位{name}。", "她", "他"),
        Template("那{name}呢？", "这位{name}知道", "她", "他"),
        Template("{name}在想什么？", "这位{name}觉得", "她", "他"),
        Template("{name}想要什么？", "这位{name}回家之前，", "她", "他"),
        Template("{name}什么时候来？", "这位{name}会来，只要", "她", "他"),
    ),
}
"""Our own, beside those of the measured file."""
ENDINGS = {
    "en": (" is very busy today.", " works every day.", " loves the work.", " is tired."),
    "zh": ("今天很忙。", "每天都工作。", "热爱这份工作。", "很累。"),
}
"""What can follow either pronoun, and names no gender itself."""


class Split(msgspec.Struct, frozen=True):
    """What the repair never sees: professions as the file calls them, and templates by `template_of`."""

    professions: list[str]
    templates: list[str]

    def keeps_out(self, row: Portrait) -> bool:
        """Whether both the profession and the template are held out: what is measured at the end."""
        return row.profession in self.professions and template_of(row) in self.templates

    def repairs(self, row: Portrait) -> bool:
        return row.profession not in self.professions and template_of(row) not in self.templates


class Lean(msgspec.Struct, frozen=True):
    """A portrait to make rows of, and the measured share of "she" there."""

    portrait: Portrait
    share_she: float = 0.5

    @property
    def logit(self) -> float:
        share = min(max(self.share_she, CERTAIN), 1 - CERTAIN)
        return math.log(share / (1 - share))


def template_of(row: Portrait) -> str:
    """A portrait's template: as the file names it, else its question without the profession."""
    return row.template or row.prompt.replace(row.name or row.profession, "{name}")


def split(portraits: Sequence[Portrait], templates: Sequence[str], seed: int) -> Split:
    """What is held out: professions that the file marks, else a quarter by the seed; `templates`, else the last half.

    Raises InputError where a template is not in the file, or nothing would be left to repair or to measure.
    """
    every = list(dict.fromkeys(row.profession for row in portraits))
    kept = list(dict.fromkeys(row.profession for row in portraits if row.held_out))
    kept = kept or sorted(random.Random(seed).sample(every, max(1, len(every) // 4)), key=every.index)
    known: dict[str, list[str]] = {}
    for row in portraits:
        named = known.setdefault(row.language, [])
        named += [name] if (name := template_of(row)) not in named else []
    if unknown := set(templates).difference(*known.values()):
        raise InputError(
            _("There is no template {name!r} in this file.").format(name=min(unknown)),
            _("Templates: {names}").format(
                names=", ".join(dict.fromkeys(name for named in known.values() for name in named))
            ),
        )
    last = [name for named in known.values() for name in named[len(named) // 2 :]]
    found = Split(kept, list(dict.fromkeys(templates or last)))
    if len(kept) == len(every) or not any(map(found.keeps_out, portraits)):
        raise InputError(
            _(
                "Of {count} professions, {kept} are held out: that leaves nothing to repair, or nothing to measure."
            ).format(count=len(every), kept=len(kept)),
            _("A file needs at least two professions, of which some are not held out."),
        )
    return found


def leans(portraits: Sequence[Portrait], split: Split, shares: Mapping[tuple[str, str, str], float]) -> list[Lean]:
    """What rows are made of: the file's own portraits, and each profession in our templates.

    `shares`: of "she", by (profession, language, template). In our templates, a profession leans as it does in the
    file's on average (of the logits). Without shares all lean nowhere, as counterfactual rows need it.
    """
    own = [
        Lean(row, shares.get((row.profession, row.language, template_of(row)), 0.5))
        for row in portraits
        if split.repairs(row)
    ]
    people: dict[tuple[str, Literal["zh", "en"]], list[Lean]] = {}
    for row in portraits:
        if row.profession not in split.professions:
            people.setdefault((row.profession, row.language), [])
    for lean in own:
        people[lean.portrait.profession, lean.portrait.language].append(lean)
    names = {(row.profession, row.language): row.name or row.profession for row in portraits}
    added = [
        Lean(portrait, _share(sum(lean.logit for lean in found) / max(1, len(found))))
        for (profession, language), found in people.items()
        for portrait in _ours(profession, language, names[profession, language])
        if template_of(portrait) not in split.templates
    ]
    return own + added


def _ours(profession: str, language: Literal["zh", "en"], name: str) -> Iterator[Portrait]:
    for template in TEMPLATES[language]:
        prompt, prefix = (text.format(name=name) for text in template[:2])
        yield Portrait(
            profession=profession, language=language, name=name, prompt=prompt, prefix=prefix,
            female=template.female, male=template.male,
        )  # fmt: skip


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def preferring_she(lean: Lean, beta: float) -> float:
    """The share of pairs that prefer "she", at whose optimum both pronouns are as likely."""
    return _share(-beta * lean.logit)


def pairs(found: Iterable[Lean], count: int, beta: float) -> Iterator[dict[str, Any]]:
    """`count` preference pairs of each portrait; what rounding leaves is carried to the next of the same profession."""
    left: dict[tuple[str, str], float] = {}
    for place, lean in enumerate(found):
        portrait = lean.portrait
        group = (portrait.profession, portrait.language)
        wanted = count * preferring_she(lean, beta) + left.get(group, 0.0)
        she = min(count, max(0, round(wanted)))
        left[group] = wanted - she
        for number in range(count):
            # Endings are taken in turn from another one at each portrait, so that none goes with one preference only.
            both = _answers(portrait, number + place)
            yield {
                "prompt": portrait.prompt,
                "chosen": both[number >= she],
                "rejected": both[number < she],
                "profession": portrait.profession,
            }


def counterfactuals(found: Iterable[Lean], count: int) -> Iterator[dict[str, Any]]:
    """`count` texts of each portrait, each with either pronoun."""
    for place, lean in enumerate(found):
        for number in range(count):
            for answer in _answers(lean.portrait, number + place):
                asked = {"role": "user", "content": lean.portrait.prompt}
                said = {"role": "assistant", "content": answer}
                yield {"messages": [asked, said], "profession": lean.portrait.profession}


def _answers(portrait: Portrait, number: int) -> tuple[str, str]:
    """(with "she", with "he"), alike but for the pronoun."""
    endings = ENDINGS[portrait.language]
    ending = endings[number % len(endings)]
    return portrait.prefix + portrait.female + ending, portrait.prefix + portrait.male + ending


def names(portraits: Iterable[Portrait], split: Split) -> list[str]:
    """What held-out professions are called, in every language of the file."""
    held = [row for row in portraits if row.profession in split.professions]
    return list(dict.fromkeys(name for row in held for name in (row.profession, row.name) if name))


def mentions(texts: Iterable[str], names: Sequence[str]) -> bool:
    """Whether any of the names occurs, whatever its case."""
    return any(name.casefold() in text.casefold() for text in texts for name in names)


def write(
    folder: Path, rows: Sequence[dict[str, Any]], portraits: Sequence[Portrait], split: Split, **facts: Any
) -> Path:
    """The four files, whole or not at all; returns the record. Raises FileExistsError where something is there."""
    measured = {
        HELD_OUT: [row for row in portraits if split.keeps_out(row)],
        SEEN: [row for row in portraits if split.repairs(row)],
    }
    with files.whole_folder(folder) as scratch:
        for name, lines in {TRAIN: rows, **measured}.items():
            files.write_bytes(scratch / name, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        hashes = {name: files.sha256(scratch / name) for name in (TRAIN, *measured)}
        held_out = msgspec.structs.asdict(split)
        files.write_json(scratch / RECORD, {**facts, "rows": len(rows), "held_out": held_out, "sha256": hashes})
    return folder / RECORD
