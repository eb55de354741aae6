"""`data check|preview|clean|list|add|repair`: what is in a data set, what is wrong with it, a copy without that."""

from typing import Annotated, Any, Literal

import msgspec

from toolbox.commands import Command, Session, plugged
from toolbox.i18n import N_
from toolbox.options import option

COLUMNS_HELP = N_("Column of a key where it has another name, as response=answer")


class DataOptions(msgspec.Struct, kw_only=True):
    """What every action on one data set takes."""

    dataset: Annotated[
        str,
        option(
            N_("Data set: a file, a name, or [hf|ms]::NAME:SUBSET#ROWS"),
            ask=True, positional=True, choices="datasets", metavar="DATASET",
        ),
    ]  # fmt: skip
    columns: Annotated[list[str], option(COLUMNS_HELP, metavar="KEY=COLUMN")] = msgspec.field(default_factory=list)
    plugin: Annotated[list[str], option(plugged.HELP, metavar="FILE.py")] = msgspec.field(default_factory=list)


class SearchOptions(DataOptions, kw_only=True):
    """What `data check` and `data clean` take."""

    against: Annotated[str, option(N_("Test set whose rows should not be in the data"), metavar="DATASET")] = ""
    near: Annotated[bool, option(N_("Also look for rows that are nearly the same"))] = True


class CheckOptions(SearchOptions, kw_only=True):
    """What `data check` takes."""

    model: Annotated[
        str, option(N_("Model whose tokenizer counts lengths; none: in characters"), ask=True, choices="models")
    ] = ""
    max_length: Annotated[int | None, option(N_("Longest row that is no problem, in tokens or characters"), ge=1)] = (
        None
    )


class CleanOptions(SearchOptions, kw_only=True):
    """What `data clean` takes."""

    output: Annotated[str, option(N_("File to write; none: a new one in this folder"))] = ""


class PreviewOptions(DataOptions, kw_only=True):
    """What `data preview` takes."""

    model: Annotated[str, option(N_("Model that is to see it"), ask=True, choices="models")] = "demo"
    row: Annotated[list[int], option(N_("Rows to show, by line or place; none: the first"), ask=True)] = msgspec.field(
        default_factory=list
    )
    max_length: Annotated[int, option(N_("Tokens a row; longer rows are cut"), ge=16)] = 2048


class ListOptions(msgspec.Struct, kw_only=True):
    """What `data list` takes."""

    words: Annotated[
        list[str],
        option(
            N_("Part of a name, a language or a task; none: all"), ask=True, positional=True, metavar="WORD"
        ),
    ] = msgspec.field(default_factory=list)  # fmt: skip


class AddOptions(msgspec.Struct, kw_only=True):
    """What `data add` takes."""

    name: Annotated[str, option(N_("Name for the data set"), ask=True, positional=True, metavar="NAME")]
    file: Annotated[str, option(N_("Its file or folder on this machine"), ask=True)] = ""
    modelscope: Annotated[str, option(N_("Its id on ModelScope"), metavar="OWNER/NAME")] = ""
    huggingface: Annotated[str, option(N_("Its id on Hugging Face"), metavar="OWNER/NAME")] = ""
    columns: Annotated[list[str], option(COLUMNS_HELP, metavar="KEY=COLUMN")] = msgspec.field(default_factory=list)
    task: Annotated[Literal["sft", "pretrain", "preference", "kto"], option(N_("What it is for"))] = "sft"
    language: Annotated[str, option(N_("Its language, as zh or en"))] = ""


class RepairOptions(msgspec.Struct, kw_only=True):
    """What `data repair` takes."""

    source: Annotated[
        str,
        option(
            N_("Evaluation run that measured a model's gender bias, or a file of portraits (sft only)"),
            ask=True, positional=True, choices="runs", metavar="RUN_OR_FILE",
        ),
    ]  # fmt: skip
    stage: Annotated[
        Literal["dpo", "sft"],
        option(N_("dpo: preference pairs that push to balance; sft: each text in both genders"), ask=True),
    ] = "dpo"
    held_out_template: Annotated[
        list[str], option(N_("Templates that only the evaluation sees; none: the last half"), metavar="NAME")
    ] = msgspec.field(default_factory=list)
    general: Annotated[
        list[str],
        option(N_("Data sets whose rows are put in too, so that nothing else is forgotten"), choices="datasets"),
    ] = msgspec.field(default_factory=list)
    pairs: Annotated[int, option(N_("Pairs, or texts, of each portrait"), ge=1, le=1000)] = 8
    beta: Annotated[
        float, option(N_("DPO's beta, by which the pairs are counted; train with the same"), ge=0.01, le=10)
    ] = 1.0
    output: Annotated[str, option(N_("Folder to write; none: repair in the run's folder"), metavar="DIR")] = ""
    seed: Annotated[int, option(N_("Seed of all that is random"), ge=0, le=2**31 - 1)] = 42


def check(options: CheckOptions, session: Session) -> dict[str, Any]:
    """Go through a data set and say all that is wrong with it; exit status 2 where training would refuse it."""
    from toolbox.commands.data import checking

    plugged.load(options.plugin, session)
    return checking.run(options, session)


def preview(options: PreviewOptions, session: Session) -> dict[str, Any]:
    """Rows as the model sees them, with what is learnt from in colour."""
    from toolbox.commands.data import previewing

    plugged.load(options.plugin, session)
    return previewing.run(options, session)


def clean(options: CleanOptions, session: Session) -> dict[str, Any]:
    """Write a new file without what `check` finds, and a record of what was left out."""
    from toolbox.commands.data import cleaning

    plugged.load(options.plugin, session)
    return cleaning.run(options, session)


def show(options: ListOptions, session: Session) -> dict[str, Any]:
    """The named data sets, a person's own first."""
    from toolbox.commands.data import naming

    return naming.show(options, session)


def add(options: AddOptions, session: Session) -> dict[str, Any]:
    """Give a data set of one's own a name."""
    from toolbox.commands.data import naming

    return naming.add(options, session)


def repair(options: RepairOptions, session: Session) -> dict[str, Any]:
    """Make rows that even out which pronoun a model expects, and portraits to measure that they never name."""
    from toolbox.commands.data import repairing

    return repairing.run(options, session)


COMMANDS = (
    Command("data check", N_("Find what is wrong: broken rows, duplicates, a test set inside"), CheckOptions, check),
    Command("data preview", N_("Show rows as the model sees them, with what is learnt from"), PreviewOptions, preview),
    Command("data clean", N_("Write a copy without broken rows and duplicates, and a record"), CleanOptions, clean),
    Command("data list", N_("Named data sets, searched by name, language or task"), ListOptions, show),
    Command("data add", N_("Give a data set of your own a name"), AddOptions, add),
    Command("data repair", N_("Make rows against a measured gender bias, balanced both ways"), RepairOptions, repair),
)
