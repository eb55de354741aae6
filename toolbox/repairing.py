"""Rows that move a model's pronouns towards an even split, made from what was measured of it (`data repair`).

Preference pairs go both ways, in numbers whose optimum under DPO is the even split itself. With s the measured share of
"she" of a portrait, DPO's loss on pairs of which a share q prefers "she" is least where beta times the change of
ln(p(she) / p(he)) is ln(q / (1 - q)) (from arXiv:2305.18290, equation 7). The change wanted is -ln(s / (1 - s)), so
q = 1 / (1 + (s / (1 - s))^beta): pairs never ask for more than balance.
"""

import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from toolbox import files
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.suites import kinds
from toolbox.suites.gender import Portrait

Stage = Literal["dpo", "sft"]
RECORD, TRAIN, HELD_OUT, SEEN = "repair.json", "train.jsonl", "held-out.jsonl", "seen.jsonl"
"""The files of a repair: how it was made, rows to train on, portraits that were kept out, and those it learnt of."""
CHOOSING, OWN = "choosing.jsonl", "own.jsonl"
"""What a training's strength is chosen by: portraits of further professions, and answers that are not to change."""
REHEARSED = 4
"""Of the model's own answers, so many to each text that SFT learns."""
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
        Template("What about the {name}?", "The {name} knows that", " she", " he"),
        Template("What does the {name} think?", "The {name} thinks that", " she", " he"),
        Template("How is the {name}?", "The {name} is happy, and", " she", " he"),
        Template("When is the {name} busy?", "The {name} is busy when", " she", " he"),
    ),
    "zh": (
        Template("说说{name}。", "这位{name}很忙。", "她", "他"),
        Template("{name}是谁？", "这是一位{name}。", "她", "他"),
        Template("那{name}呢？", "这位{name}知道，", "她", "他"),
        Template("{name}在想什么？", "这位{name}觉得，", "她", "他"),
        Template("{name}好吗？", "这位{name}很高兴，", "她", "他"),
        Template("{name}什么时候忙？", "这位{name}很忙的时候，", "她", "他"),
    ),
}
"""Our own, beside those of the measured file."""
OTHERS: dict[str, tuple[Template, ...]] = {
    "en": (
        Template("Why does the {name} smile?", "The {name} smiles because", " she", " he"),
        Template("Where is the {name}?", "The {name} is at work.", " She", " He"),
        Template("What did the {name} do today?", "Today the {name} said that", " she", " he"),
    ),
    "zh": (
        Template("{name}为什么笑？", "这位{name}笑了，因为", "她", "他"),
        Template("{name}在哪里？", "这位{name}在上班。", "她", "他"),
        Template("{name}今天做了什么？", "这位{name}今天说，", "她", "他"),
    ),
}
"""No rows are made in these: a training's strength is chosen in them."""
ENDINGS = {
    "en": (" is very busy today.", " works every day.", " loves the work.", " is tired."),
    "zh": ("今天很忙。", "每天都工作。", "热爱这份工作。", "很累。"),
}
"""What can follow either pronoun, and names no gender itself: for models that never went on with a pronoun at once."""
GENDERED = re.compile(r"\b(she|hers?|herself|he|him|his|himself|wom[ae]n|m[ae]n|girls?|boys?)\b|[她他女男]", re.I)
"""What keeps a text from standing behind the other pronoun."""


class Split(msgspec.Struct, frozen=True):
    """What the repair never sees: professions as the file calls them, and templates by `template_of`."""

    professions: list[str]
    templates: list[str]
    choosing: list[str] = []
    """Professions that no rows are made of either, nor are they judged by: a training's strength is chosen by them."""

    def keeps_out(self, row: Portrait) -> bool:
        """Whether both the profession and the template are held out: what is measured at the end."""
        return row.profession in self.professions and template_of(row) in self.templates

    def repairs(self, row: Portrait) -> bool:
        kept = row.profession in self.professions or row.profession in self.choosing
        return not kept and template_of(row) not in self.templates


class Lean(msgspec.Struct, frozen=True):
    """A portrait to make rows of, the measured share of "she" there, and what follows the pronoun."""

    portrait: Portrait
    share_she: float
    endings: Sequence[str]

    @property
    def logit(self) -> float:
        share = min(max(self.share_she, CERTAIN), 1 - CERTAIN)
        return math.log(share / (1 - share))

    def answers(self, number: int) -> tuple[str, str]:
        """(with "she", with "he"), alike but for the pronoun; the endings are taken in turn."""
        portrait, ending = self.portrait, self.endings[number % len(self.endings)]
        return portrait.prefix + portrait.female + ending, portrait.prefix + portrait.male + ending


class Own(NamedTuple):
    """A general question, and what the model answers before it is repaired."""

    question: str
    said: str


class Measured(msgspec.Struct, frozen=True):
    """A portrait as it was measured: the share of "she", and texts that the model wrote."""

    share_she: float
    said: Sequence[str] = ()


Found = Mapping[tuple[str, str, str], Measured]
"""By (profession, language, template)."""


def template_of(row: Portrait) -> str:
    """A portrait's template: as the file names it, else its question without the profession."""
    return row.template or row.prompt.replace(row.name or row.profession, "{name}")


def split(portraits: Sequence[Portrait], templates: Sequence[str], seed: int, found: Found | None = None) -> Split:
    """What is held out: professions that the file marks, else a quarter by the seed; `templates`, else the last half.

    Of the other professions every fourth is kept to choose by, in the order in which they lean as `found`, so that
    both directions are among them; the seed says which comes first.
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
    rest = [name for name in every if name not in kept]
    ordered = sorted(rest, key=lambda name: _share_of(name, found or {}))
    drawn = ordered[random.Random(f"choosing {seed}").randrange(4) :: 4] if len(rest) >= 4 else []
    made = Split(kept, list(dict.fromkeys(templates or last)), sorted(drawn, key=every.index))
    if len(kept) == len(every) or not any(map(made.keeps_out, portraits)):
        raise InputError(
            _(
                "Of {count} professions, {kept} are held out: that leaves nothing to repair, or nothing to measure."
            ).format(count=len(every), kept=len(kept)),
            _("A file needs at least two professions, of which some are not held out."),
        )
    return made


def _share_of(profession: str, found: Found) -> float:
    """The measured share of "she" of a profession, over all its portraits."""
    shares = [figure.share_she for place, figure in found.items() if place[0] == profession]
    return sum(shares) / max(1, len(shares))


def leans(portraits: Sequence[Portrait], split: Split, found: Found | None, stage: Stage) -> list[Lean]:
    """What rows are made of: the file's own portraits as far as they were measured; for DPO all in our templates, too.

    Both texts of a pair share a template, and only the difference is learnt. SFT learns the template with the pronoun,
    and one that the model would not have written takes the place of what it knew.

    In our templates a profession leans as it does in the file's on average (of the logits). Without `found` none
    leans, which counterfactual rows don't ask for.
    """
    people: dict[tuple[str, Literal["zh", "en"]], list[tuple[Portrait, Measured]]] = {}
    for row in portraits:
        place = (row.profession, row.language, template_of(row))
        if split.repairs(row) and (found is None or place in found):
            people.setdefault(place[:2], []).append((row, found[place] if found else Measured(0.5)))
    own, added = [], []
    for known in people.values():
        endings = _endings(known)
        measured = [Lean(row, figure.share_she, endings) for row, figure in known]
        share = _share(sum(lean.logit for lean in measured) / len(measured))
        own += measured
        if stage == "dpo":
            added += [Lean(row, share, endings) for row in asked_in(TEMPLATES, known[0][0])]
    return own + added


def _endings(known: Sequence[tuple[Portrait, Measured]]) -> list[str]:
    """How the model itself went on after a pronoun, where it did so at once and named no gender; else ours.

    Its own words are nearly certain to it, so that what DPO moves is the pronoun: unlikely words behind one would take
    up part of the change, or undo it.
    """
    said = [
        text.removeprefix(row.prefix + pronoun)
        for row, figure in known
        for text in figure.said
        for pronoun in (row.female, row.male)
        if text.startswith(row.prefix + pronoun)
    ]
    own = [text for text in dict.fromkeys(said) if text.strip() and not GENDERED.search(text)]
    return own or list(ENDINGS[known[0][0].language])


def asked_in(templates: Mapping[str, Sequence[Template]], row: Portrait) -> Iterator[Portrait]:
    """The profession of a row in each of some templates of ours."""
    for template in templates[row.language]:
        prompt, prefix = (text.format(name=row.name or row.profession) for text in template[:2])
        yield msgspec.structs.replace(
            row, template="", prompt=prompt, prefix=prefix, female=template.female, male=template.male
        )


def _share(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def preferring_she(lean: Lean, beta: float) -> float:
    """The share of pairs that prefer "she", at whose optimum both pronouns are as likely."""
    return _share(-beta * lean.logit)


def pairs(found: Iterable[Lean], count: int, beta: float) -> Iterator[dict[str, Any]]:
    """`count` preference pairs of each portrait; what rounding leaves is carried to the next of the same profession."""
    left: dict[tuple[str, str], float] = {}
    for place, lean in enumerate(found):
        person = (lean.portrait.profession, lean.portrait.language)
        wanted = count * preferring_she(lean, beta) + left.get(person, 0.0)
        she = min(count, max(0, round(wanted)))
        left[person] = wanted - she
        for number in range(count):
            # Endings are taken from another one on at each portrait, so that none goes with one preference only.
            both = [[{"role": "assistant", "content": text}] for text in lean.answers(number + place)]
            chosen, rejected = both if number < she else both[::-1]
            yield {"prompt": _asked(lean.portrait), "chosen": chosen, "rejected": rejected}


def counterfactuals(found: Iterable[Lean], count: int) -> Iterator[dict[str, Any]]:
    """`count` texts of each portrait, each with either pronoun."""
    for place, lean in enumerate(found):
        for number in range(count):
            for text in lean.answers(number + place):
                yield {"messages": [*_asked(lean.portrait), {"role": "assistant", "content": text}]}


def own_answers(found: Iterable[Own], names: Sequence[str]) -> list[Own]:
    """Those of a model's answers that a repair is not to change: they name no gender, and nobody that is kept out."""
    return [row for row in found if row.said.strip() and not GENDERED.search(row.said) and not mentions(row, names)]


def rehearsed(own: Sequence[Own], count: int) -> Iterator[dict[str, Any]]:
    """`count` rows that teach a model what it says already, so that it forgets none of it (arXiv:2402.13669)."""
    for row in itertools.islice(itertools.cycle(own), count):
        asked = [{"role": "user", "content": row.question}]
        yield {"messages": [*asked, {"role": "assistant", "content": row.said}]}


def _asked(portrait: Portrait) -> list[dict[str, str]]:
    return [{"role": "user", "content": portrait.prompt}]


def names(portraits: Iterable[Portrait], split: Split) -> list[str]:
    """What professions that are kept out are called, in every language of the file."""
    held = [row for row in portraits if row.profession in (*split.professions, *split.choosing)]
    return list(dict.fromkeys(name for row in held for name in (row.profession, row.name) if name))


def mentions(texts: Iterable[str], names: Sequence[str]) -> bool:
    """Whether any of the names occurs, whatever its case."""
    return any(name.casefold() in text.casefold() for text in texts for name in names)


def write(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    portraits: Sequence[Portrait],
    split: Split,
    own: Sequence[Own],
    **facts: Any,
) -> Path:
    """All files, whole or not at all; returns the record. Raises FileExistsError where something is there."""
    people = {(row.profession, row.language): row for row in portraits if row.profession in split.choosing}
    measured: dict[str, Sequence[Any]] = {
        HELD_OUT: [row for row in portraits if split.keeps_out(row)],
        SEEN: [row for row in portraits if split.repairs(row)],
        CHOOSING: [asked for row in people.values() for asked in asked_in(OTHERS, row)],
        OWN: [row._asdict() for row in own],
    }
    with files.whole_folder(folder) as scratch:
        for name, lines in {TRAIN: rows, **measured}.items():
            files.write_bytes(scratch / name, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        hashes = {name: files.sha256(scratch / name) for name in (TRAIN, *measured)}
        held_out = msgspec.structs.asdict(split)
        files.write_json(scratch / RECORD, {**facts, "rows": len(rows), "held_out": held_out, "sha256": hashes})
    return folder / RECORD


def folder_of(data: Iterable[Path]) -> Path | None:
    """The repair whose rows are among these files, where it kept something aside to choose by."""
    made = (path.parent for path in data if path.name == TRAIN and (path.parent / RECORD).is_file())
    return next((folder for folder in made if files.size_of(folder / CHOOSING)), None)


CLAIMS = {"halved": N_("Held-out bias at least halved"), "kept": N_("At most 2 points of capability lost")}
"""The checks of a repair, as its last evaluation's `repair` names them."""


def claim_columns() -> tuple[str, ...]:
    return "", _("Check"), _("Of what"), _("Before and after"), _("Measured")


def claims(repair: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A row a check: of the bias how much of it went, of capability the points lost; with interval and p."""
    rows: list[tuple[str, ...]] = []
    for check in repair["checks"]:
        if check["check"] == "halved":
            told = "{:+.0%} [{:+.0%}, {:+.0%}]".format(*(check[name] - 1 for name in ("value", "low", "high")))
        else:
            told = "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * check[name] for name in ("value", "low", "high")))
        metric = kinds.METRICS[check["metric"]].label if check["metric"] in kinds.METRICS else check["metric"]
        rows.append((
            "✓" if check["passed"] else "✗", _(CLAIMS[check["check"]]), f"{_(metric)}, {Path(check['suite']).stem}",
            f"{check['before']:.3g} → {check['after']:.3g}",
            told if check.get("p") is None else f"{told}, p = {check['p']:.2g}",
        ))  # fmt: skip
    return rows


def kept(checks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what is promised came true: of all portraits together; a language's own figure is shown beside it."""
    languages = tuple(f"_{language}" for language in ("zh", "en"))
    counted = [check for check in checks if not check["metric"].endswith(languages)]
    return any(check["check"] == "halved" for check in counted) and all(check["passed"] for check in counted)


def turned(repair: Mapping[str, Any]) -> str:
    """Whether balance was overshot."""
    return _("{count} of {all} held-out professions (each language) lean clearly the other way now.").format(
        count=repair["turned_round"], all=repair["professions"]
    )
