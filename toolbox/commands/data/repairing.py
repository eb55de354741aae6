"""`data repair`: rows against a gender bias that was measured, and portraits that they never name, to measure again."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import embedded, files, repairing, runs, suites
from toolbox.commands import Session
from toolbox.config import command_line
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.suites import Suite, gender
from toolbox.suites.gender import Portrait

if TYPE_CHECKING:
    from toolbox.commands.data import RepairOptions

KINDS = {"dpo": "preference", "sft": "sft"}
"""What general rows have to be to stand beside those of a stage."""


class Source(msgspec.Struct, frozen=True):
    """Where the portraits are from and, of an evaluation, what was found."""

    suite: Suite
    folder: Path
    """Where the rows go where nobody says."""
    found: repairing.Found | None = None
    own: list[repairing.Own] = []
    """What the model answered to general questions."""
    facts: dict[str, str] = {}
    """The evaluation's run and model, and the hash of what it saved."""


def run(options: "RepairOptions", session: Session) -> dict[str, Any]:
    """Make the rows and say what to do with them; `--json`: the files, and how many rows of which sort."""
    made = make(options, session)
    if session.dry_run:
        return made
    home, folder = session.home.path, Path(made["folder"])
    train = ["--dataset", made["train"], "--stage", options.stage]
    train += ["--set", f"dpo.beta={options.beta:g}"] if options.stage == "dpo" else []
    measure = ["--suite", made["held_out"], made["seen"], "demo-qa"]
    session.say(
        _("Written: {folder}. What next:").format(folder=folder)
        + "".join(
            f"\n  {line}"
            for line in (
                command_line(home, "finetune", "--model", made["model"] or _("MODEL"), *train),
                command_line(home, "evaluate", "--run", "last", *measure),
            )
        )
    )
    return made


def make(options: "RepairOptions", session: Session) -> dict[str, Any]:
    """Read what was measured, make the rows, write them. Raises InputError for what no rows can be made of."""
    source = _source(options, session)
    portraits = gender.read(source.suite.path)
    split = repairing.split(portraits, options.held_out_template, options.seed, source.found)
    leans = repairing.leans(portraits, split, source.found, options.stage)
    if options.stage == "dpo":
        rows = list(repairing.pairs(leans, options.pairs, options.beta))
    else:
        rows = list(repairing.counterfactuals(leans, options.pairs))
    names = repairing.names(portraits, split)
    general, left_out = _general(options, names, session)
    own = repairing.own_answers(source.own, names)
    if options.stage == "sft" and own:
        taught, own = _halves(own, options.seed)
        general += repairing.rehearsed(taught, repairing.REHEARSED * len(rows))
    rows += general
    random.Random(options.seed).shuffle(rows)
    facts = {
        "stage": options.stage, "seed": options.seed, "pairs": options.pairs, "beta": options.beta,
        "suite": source.suite.name, "suite_sha256": files.sha256(source.suite.path), **source.facts,
        "sentences": len(leans), "general": options.general, "general_rows": len(general),
        "general_left_out": left_out, "own_answers": len(own),
    }  # fmt: skip
    folder = Path(options.output).expanduser().absolute() if options.output else files.free_path(source.folder)
    if folder.exists():
        raise files.taken(folder)
    if not session.dry_run:
        repairing.write(folder, rows, portraits, split, own, **facts)
    _show(facts, len(rows), portraits, split, session)
    return {
        "folder": str(folder), "train": str(folder / repairing.TRAIN), "held_out": str(folder / repairing.HELD_OUT),
        "seen": str(folder / repairing.SEEN), "record": str(folder / repairing.RECORD),
        "model": source.facts.get("model", ""), "rows": len(rows), **facts,
    }  # fmt: skip


def _halves(own: list[repairing.Own], seed: int) -> tuple[list[repairing.Own], list[repairing.Own]]:
    """(what is taught again, what only measures), drawn by the seed."""
    drawn = random.Random(f"own {seed}").sample(own, len(own))
    return drawn[: len(own) // 2], drawn[len(own) // 2 :]


def _source(options: "RepairOptions", session: Session) -> Source:
    path = Path(options.source).expanduser()
    if path.is_file():
        if options.stage == "dpo":
            raise InputError(
                _("A file of portraits does not say which way a model leans, and pairs are counted by that."),
                _("Measure first: evaluate --suite {path}; or make rows with --stage sft.").format(path=path),
            )
        suite = _of_gender(suites.resolve(str(path), session.home))
        return Source(suite, session.home.datasets / f"repair-{path.stem}")
    evaluation = runs.find(session.home.runs, options.source, lambda run: bool(_saved(run)))
    saved = _saved(evaluation)
    if saved is None:
        raise InputError(
            _("{run} measured no gender bias.").format(run=evaluation.id),
            _("Measure it: evaluate --suite demo-bias, or a file of your own portraits."),
        )
    content = files.read_json(saved) or {}
    suite = _of_gender(suites.resolve(content["suite"], session.home))
    if files.sha256(suite.path) != content["sha256"]:
        raise InputError(
            _("{path} has changed since it was measured.").format(path=suite.path), _("Evaluate again, then repair.")
        )
    rows = content["rows"].get("base") or next(iter(content["rows"].values()))
    return Source(
        suite,
        evaluation.path / "repair",
        {
            (row["profession"], row["language"], _template(row, portrait)): repairing.Measured(
                portrait["likelihood_share_she"], portrait["said"]
            )
            for row in rows
            for portrait in row["portraits"]
        },
        _answered(evaluation),
        {"evaluation": evaluation.id, "evaluation_sha256": files.sha256(saved), "model": evaluation.status().model},
    )


def _saved(run: runs.Run) -> Path | None:
    """What an evaluation kept of a gender probe; of several the first."""
    for path in sorted((run.path / "evaluation").glob("*.json")):
        content = files.read_json(path)
        rows = content["rows"].values() if content and content.get("kind") == "gender" else ()
        if any(row.get("portraits") for table in rows for row in table):
            return path
    return None


def _answered(run: runs.Run) -> list[repairing.Own]:
    """What an evaluation's base model answered to the general questions, where they were asked."""
    saved = ((files.read_json(path) or {}) for path in sorted((run.path / "evaluation").glob("*.json")))
    content = next((content for content in saved if content.get("suite") == embedded.GENERAL), None)
    rows = next(iter(content["rows"].values())) if content else []
    return [repairing.Own(row["question"], row["said"]) for row in rows]


def _of_gender(suite: Suite) -> Suite:
    if suite.kind != "gender":
        raise InputError(
            _("{name} holds no portraits.").format(name=suite.name),
            _("A portrait has the columns {columns}.").format(
                columns="profession, language, prompt, prefix, female, male"
            ),
        )
    return suite


def _template(row: dict[str, Any], portrait: dict[str, Any]) -> str:
    return portrait["template"] or portrait["prompt"].replace(row["name"], "{name}")


def _general(options: "RepairOptions", names: list[str], session: Session) -> tuple[list[dict[str, Any]], int]:
    """(rows of the general data sets that name nobody held out, how many do). Raises InputError for the wrong kind."""
    from toolbox import datasets
    from toolbox.commands.data import choosing
    from toolbox.datasets.checking import as_value, text

    kept, left_out = [], 0
    for spec in choosing.resolve(options.general, [], False, session, fetch=True):
        if spec.kind != KINDS[options.stage]:
            raise InputError(
                _("{name} holds rows for other stages than {stage}.").format(name=spec.name, stage=options.stage),
                _("Beside dpo, general rows are preference pairs; beside sft, conversations."),
            )
        for row in datasets.stream(spec):
            if repairing.mentions([text(row)], names):
                left_out += 1
            else:
                kept.append(dict(as_value(row)))
    return kept, left_out


def _show(
    facts: dict[str, Any], rows: int, portraits: list[Portrait], split: repairing.Split, session: Session
) -> None:
    called = {row.profession: row.name or row.profession for row in portraits}
    held, chosen = ([called[name] for name in group] for group in (split.professions, split.choosing))
    session.table(
        _("Rows against a gender bias"),
        ("", ""),
        [
            (_("Measured by"), facts.get("evaluation") or "—"),
            (_("Sentences"), str(facts["sentences"])),
            (_("Rows"), str(rows)),
            (_("Of these general"), str(facts["general_rows"])),
            (_("Held-out professions"), ", ".join(held)),
            (_("Professions to choose by"), ", ".join(chosen)),
            (_("Held-out templates"), ", ".join(split.templates)),
        ],
    )
