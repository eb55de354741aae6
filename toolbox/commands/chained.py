"""`runs reproduce report.md`: the chain of somebody's report done again here, as linked runs, and every number held
against what the report states; a second call goes on where the first one stopped."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import runs
from toolbox.commands import Session, devices, known
from toolbox.errors import InputError, Interrupted
from toolbox.i18n import _
from toolbox.runs import Run

if TYPE_CHECKING:
    from toolbox.commands.reproducing import ReproduceOptions
    from toolbox.device import Device
    from toolbox.facts import Facts
    from toolbox.hub.store import Kind
    from toolbox.repeating import Here
    from toolbox.report.record import Record, Step
    from toolbox.report.reproduction import Compared
    from toolbox.report.tolerances import Machine


def reproduce(options: "ReproduceOptions", session: Session) -> dict[str, Any]:
    """Check versions, fetch by hash, do each step, compare; the `--json` object says which numbers held."""
    from toolbox import repeating
    from toolbox.commands import reproducing
    from toolbox.report import record

    path = Path(options.plan).expanduser()
    found = record.read(path)
    if found.edited:
        session.say(_("Careful: the report's text was changed after its record was written; the record is compared."))
    best = devices.best(session)
    differing = _show_versions(found.record, best, session)
    if differing and options.strict:
        raise InputError(
            _("The versions here differ from the report's: {names}.").format(names=", ".join(differing)),
            _("Install those, or leave out --strict."),
        )
    here = repeating.Here(
        home=session.home,
        device=best,
        fetch=partial(_fetch, session),
        given=_of_these_runs(found.record, session) | _given(options.data),
        beside=path.resolve().parent if options.plan != "-" else None,
        made={} if options.anew else _begun(found.record, session),
    )
    skipped = _skipped(found.record)
    for number, step in enumerate(found.record.steps, 1):
        if number not in skipped and not session.dry_run:
            repeating.look(step, here)
    if session.dry_run:
        return _preview(found.record, here, skipped, session)
    compared = _do(found.record, path.name, here, skipped, session)
    titles = [f"{n}/{len(found.record.steps)} {step.verb}: {step.run}" for n, step in enumerate(found.record.steps, 1)]
    for why in skipped.values():
        session.say(why)
    return {
        "steps": [
            {"step": number, "verb": step.verb, "stated": step.run, "run": here.made[number].id}
            for number, step in enumerate(found.record.steps, 1)
            if number in here.made
        ],
        "skipped": [{"step": number, "why": why} for number, why in skipped.items()],
        "edited": found.edited,
        **reproducing.told(compared, titles, session),
    }


def _do(record: "Record", name: str, here: "Here", skipped: dict[int, str], session: Session) -> "list[Compared]":
    """Do the steps that are not done yet, in their order; returns every number compared."""
    from toolbox.facts import Facts
    from toolbox.report import reproduction, write_report

    for number, step in enumerate(record.steps, 1):
        if number not in skipped:
            session.say(f"\n━━ {number}/{len(record.steps)} {step.verb}")
            _carry_out(record, number, name, here, session)
            _repair(step, here.made[number], session)
    found: list[Compared] = []
    for number, run in sorted(here.made.items()):
        step = record.steps[number - 1]
        facts = _named_alike(Facts.of(run), step)
        compared = reproduction.compare(step.numbers, step.machine, facts, number)
        if kept := reproduction.of(run):
            same = reproduction.same_bits(step.machine, facts)
            reproduction.keep(run, msgspec.structs.replace(kept, compared=compared, same_bits=same))
            write_report(run)
        found += compared
    return found


def _named_alike(facts: "Facts", step: "Step") -> "Facts":
    """What a run said, with its suites named as in the report: here their files may be called otherwise."""
    stated = (data.name if data.source == "embedded" else f"/{data.name}" for data in step.suites)
    names = dict(zip(facts.plan.get("suites") or [], stated, strict=False))
    rows = [{**row, "suite": names.get(row.get("suite"), row.get("suite"))} for row in facts.result.get("results", [])]
    return msgspec.structs.replace(facts, result={**facts.result, "results": rows})


def _carry_out(record: "Record", number: int, name: str, here: "Here", session: Session) -> None:
    """One step: the run that an earlier attempt left, gone on with where it has a checkpoint; else a new one."""
    from toolbox import repeating
    from toolbox.commands.runs import why_not_resumable
    from toolbox.report import reproduction

    step, run = record.steps[number - 1], here.made.get(number)
    if run and run.status().state == "done":
        session.say(_("{run} has done this already.").format(run=run.id))
        return
    if run and run.alive():
        session.watch(run)
        return
    if not run or why_not_resumable(run, run.status()):
        planned = repeating.repeated(step, here)
        for sentence in planned.adapted:
            session.say(_("Otherwise than in the report: {what}.").format(what=sentence))
        run = runs.create(session.home.prepare().runs, runs.undated(step.run), planned.plan)
        began = here.made[1].id if 1 in here.made and number > 1 else run.id
        reproduction.keep(
            run,
            reproduction.Reproduction(
                report=name, record=record.id, step=number, steps=len(record.steps), run=step.run, began=began
            ),
        )
        here.made[number] = run
    run.start(_threads(step, here.device))
    try:
        session.follow(run)
    except Interrupted as stopped:
        raise Interrupted(stopped.message, _("The same command goes on from here.")) from stopped


def _repair(step: "Step", run: Run, session: Session) -> None:
    """The rows that `data repair` made of an evaluation, made of what was measured here."""
    from toolbox.commands.data import RepairOptions, repairing

    if step.repair and not (run.path / "repair").exists():
        repairing.make(RepairOptions(source=run.id, **msgspec.structs.asdict(step.repair)), session)


def _threads(step: "Step", device: "Device") -> dict[str, str]:
    """As many threads as the report's machine used, where there are as many: the order of sums depends on them."""
    wanted = step.machine.threads
    return {"OMP_NUM_THREADS": str(wanted)} if device.kind == "cpu" and 0 < wanted <= device.cores else {}


def _begun(record: "Record", session: Session) -> "dict[int, Run]":
    """The runs of the newest attempt at this record that was not finished, by step."""
    from toolbox.report import reproduction

    attempts: dict[str, dict[int, Run]] = {}
    for run in runs.every(session.home.runs):
        made = reproduction.of(run)
        if made and made.record == record.id:
            attempts.setdefault(made.began, {}).setdefault(made.step, run)
    wanted = set(range(1, len(record.steps) + 1)) - set(_skipped(record))
    for attempt in attempts.values():
        done = {number for number, run in attempt.items() if run.status().state == "done"}
        if wanted <= done:
            return {}
        session.say(_("Going on with an attempt that was not finished; --anew begins from the start."))
        return attempt
    return {}


def _skipped(record: "Record") -> dict[int, str]:
    """By number, why a step is not done again: it needs what no report can bring, or builds on one that does."""
    found: dict[int, str] = {}
    for number, step in enumerate(record.steps, 1):
        because = next((part for part in _builds_on(step) if part in found), 0)
        if step.verb == "serve":
            found[number] = _("Step {number} is left out: a server waits for clients.").format(number=number)
        elif step.needs:
            found[number] = _("Step {number} is left out: it needs {what}, which no report can bring.").format(
                number=number, what=", ".join(step.needs)
            )
        elif because:
            found[number] = _("Step {number} is left out: it builds on step {other}.").format(
                number=number, other=because
            )
    return found


def _builds_on(step: "Step") -> Iterator[int]:
    from toolbox.report.record import all_made

    yield from (part.step for part in all_made(step))
    if step.after:
        yield step.after


def _show_versions(record: "Record", device: "Device", session: Session) -> list[str]:
    """A table of what differs from the report's machine; returns the names of versions that do."""
    stated_machine, machine = record.steps[0].machine, _machine(device)
    names = [name for name, version in stated_machine.versions.items() if machine.versions.get(name) != version]
    rows = [(name, stated_machine.versions[name], machine.versions.get(name, "–")) for name in names]
    parts = [(_("Device"), "kind"), (_("Name"), "name"), (_("Vector instructions"), "simd")]
    rows += [
        (title, getattr(stated_machine, part), getattr(machine, part))
        for title, part in parts
        if getattr(stated_machine, part) != getattr(machine, part)
    ]
    if rows:
        session.table(_("Otherwise than in the report"), (_("What"), _("Report"), _("Here")), rows)
    else:
        session.say(_("Device and versions are the report's."))
    return [name for name in names if name != "revision"]


def _machine(device: "Device") -> "Machine":
    from toolbox import environment
    from toolbox.report import stated

    return stated.machine(msgspec.to_builtins(device), environment.describe(0))


def _given(words: list[str]) -> dict[str, Path]:
    """`--data NAME=PATH …`. Raises InputError where a path leads nowhere."""
    found = {}
    for word in words:
        name, _equals, place = word.partition("=")
        path = Path(place).expanduser()
        if not name or not place or not path.exists():
            raise InputError(
                _("{word!r} does not say where something lies.").format(word=word),
                _("Write --data NAME=PATH, with a name of the report."),
            )
        found[name] = path.absolute()
    return found


def _of_these_runs(record: "Record", session: Session) -> dict[str, Path]:
    """Where a person's own files lie, as the plans say where the report's very runs are of this home."""
    from toolbox.facts import read_plan

    found: dict[str, Path] = {}
    for step in record.steps:
        plan = read_plan(Run(session.home.runs / step.run))
        specs = [spec for name in ("datasets", "eval_datasets", "calibration") for spec in plan.get(name) or []]
        places = [plan.get("model"), plan.get("base"), *specs]
        paths = [str(place.get("path", "")) for place in places if isinstance(place, dict)]
        paths += [str(path) for path in (plan.get("adapter"), *(plan.get("suites") or [])) if path]
        found |= {Path(path).name: Path(path) for path in paths if Path(path).is_absolute() and Path(path).exists()}
    return found


def _fetch(session: Session, kind: "Kind", id: str, source: str, revision: str) -> None:
    """Fetch a repository as the report had it; asked first, since it may be large."""
    from toolbox.errors import NotFoundError
    from toolbox.hub import fetching

    if not session.confirm(_("{name} is not on this machine. Download it now?").format(name=id)):
        raise NotFoundError(
            _("{name} is not on this machine.").format(name=id), _("Fetch it first: download {name}").format(name=id)
        )
    fetching.fetch(
        fetching.Request(
            id=id,
            also=known.ids(id, session) if kind == "model" else {},
            kind=kind,
            source=source if source in ("modelscope", "huggingface") else session.settings.source,
            revision=revision,
            home=session.home,
            settings=session.settings,
            progress=session.transfer,
            say=session.say,
        )
    )


def _preview(record: "Record", here: "Here", skipped: dict[int, str], session: Session) -> dict[str, Any]:
    """The steps that would be done; nothing is started or fetched."""
    rows = [
        (str(number), step.verb, step.run, skipped.get(number) or (_("done") if number in here.made else ""))
        for number, step in enumerate(record.steps, 1)
    ]
    session.table(_("Plan"), ("", _("What"), _("Run"), ""), rows)
    return {
        "steps": [
            {"step": number, "verb": step.verb, "stated": step.run} for number, step in enumerate(record.steps, 1)
        ],
        "skipped": [{"step": number, "why": why} for number, why in skipped.items()],
    }
