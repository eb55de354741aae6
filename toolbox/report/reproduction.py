"""What a run reproduces, and what came of it: RUN/reproduction.json, and its section of report.md."""

from typing import TYPE_CHECKING

import msgspec

from toolbox import files
from toolbox.facts import Facts
from toolbox.i18n import N_, _
from toolbox.report import markdown, stated
from toolbox.report.markdown import code, plain
from toolbox.report.tolerances import Machine, Name, Value, Verdict, alike, intervals, judge
from toolbox.runs import Run

if TYPE_CHECKING:
    from toolbox.report.story import Story

FILE = "reproduction.json"
VERDICTS: dict[Verdict, str] = {"held": N_("✓ holds"), "differed": N_("✗ differs"), "reported": N_("– said only")}


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A number of the report, and here."""

    step: int
    name: str
    kind: Name
    stated: Value
    now: Value | None
    verdict: Verdict


class Reproduction(msgspec.Struct, kw_only=True):
    """RUN/reproduction.json."""

    report: str
    """The file's name."""
    record: str
    """The id of the record."""
    step: int
    steps: int
    run: str
    """The run of the report."""
    began: str = ""
    """This machine's run of the first step: what belongs together."""
    same_bits: bool = False
    compared: list[Compared] = []


def of(run: Run) -> Reproduction | None:
    """What a run reproduces; None where it reproduces nothing, or that can't be read."""
    try:
        return msgspec.json.decode((run.path / FILE).read_bytes(), type=Reproduction)
    except (OSError, msgspec.MsgspecError):
        return None


def keep(run: Run, made: Reproduction) -> None:
    files.write_json(run.path / FILE, made)


def compare(stated_numbers: stated.Numbers, machine: Machine, facts: Facts, step: int = 1) -> list[Compared]:
    """Each number that was stated, beside what the run says, with its verdict."""
    same = same_bits(machine, facts)
    now = stated.numbers(facts)
    bounds = intervals(stated_numbers.get("bound", {}))
    return [
        Compared(
            step=step, name=name, kind=kind, stated=value, now=(found := now.get(kind, {}).get(name)),
            verdict=judge(kind, value, found, same, bounds.get(name)),
        )
        for kind, values in stated_numbers.items()
        for name, value in values.items()
    ]  # fmt: skip


def same_bits(machine: Machine, facts: Facts) -> bool:
    """Whether the run had to give the bits that `machine` gave: not with micro-batches made smaller on its way."""
    return alike(machine, stated.machine(facts.plan.get("device"), facts.env)) and not facts.result.get("ladder")


def rows(compared: list[Compared]) -> list[tuple[str, str, str, str]]:
    """(what, stated, now, verdict) of what differs, and of the rest what people look at."""
    shown = [one for one in compared if one.verdict == "differed" or _is_telling(one)]
    return [(one.name, _text(one.stated), _text(one.now), _(VERDICTS[one.verdict])) for one in shown]


def _is_telling(one: Compared) -> bool:
    """Points of curves, ends of intervals, counts of items and parts of predictions say nothing that others don't."""
    if one.kind in ("bound", "rounding", "hash") or " at step " in one.name or one.name.endswith(", n"):
        return False
    return "." not in one.name and (one.kind == "metric" or bool(one.stated))


def _text(value: Value | None) -> str:
    if isinstance(value, bool) or value is None:
        return {True: _("yes"), False: _("no"), None: "–"}[value]
    return f"{value:.6g}" if isinstance(value, float) else str(value)[:12] if isinstance(value, str) else f"{value:,}"


def section(story: "Story") -> str:
    """Which report the chain reproduces, and which of its numbers hold."""
    made = [(facts, one) for facts in story.chain if (one := of(facts.run))]
    if not made:
        return ""
    told = _("This does the report {report} again; it is compared number by number.").format(
        report=code(made[0][1].report)
    )
    counted = [
        (str(one.step), facts.verb, code(one.run), code(facts.run.id), *_counts(one.compared), _alike(one))
        for facts, one in made
    ]  # fmt: skip
    steps = markdown.table(
        ("", _("What"), _("There"), _("Here"), _("Holds"), _("Differs"), _("Said only"), _("Machine")), counted
    )
    header = (_("What"), _("Stated"), _("Now"), "")
    compared = [tuple(map(plain, row)) for _facts, one in made for row in rows(one.compared)]
    return markdown.section(_("Reproduction"), told, steps, markdown.table(header, compared) if compared else "")


def _counts(compared: list[Compared]) -> tuple[str, ...]:
    verdicts = [one.verdict for one in compared]
    return tuple(str(verdicts.count(verdict)) for verdict in VERDICTS)


def _alike(one: Reproduction) -> str:
    return _("alike: equal means every bit") if one.same_bits else _("another: within tolerances")
