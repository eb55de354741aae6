"""The verbs: one file each. This table names them without importing them, so that `--help` costs nothing."""

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from toolbox.config import Home, Settings
from toolbox.i18n import N_
from toolbox.runs import Run, Status


class Verb(msgspec.Struct, frozen=True):
    """A line of the table. `number` is its place in the menu for good; 0: on the command line only."""

    name: str
    number: int
    summary: str

    def commands(self) -> "tuple[Command, ...]":
        """The verb's commands: one, or one an action (`runs list`, `runs show` …)."""
        return importlib.import_module(f"toolbox.commands.{self.name}").COMMANDS


VERBS = (
    Verb("download", 1, N_("Download a model or a data set")),
    Verb("serve", 2, N_("Serve a model on an OpenAI-compatible port")),
    Verb("finetune", 3, N_("Fine-tune a model on your data")),
    Verb("merge", 4, N_("Merge an adapter into its base model, with proof")),
    Verb("evaluate", 5, N_("Evaluate: what it knows, what it learnt, which way it leans")),
    Verb("chat", 6, N_("Chat with a model in the terminal")),
    Verb("plan", 7, N_("Plan: will it fit, and how long will it take")),
    Verb("export", 8, N_("Export to GGUF and other formats, with proof")),
    Verb("data", 9, N_("Data: check, preview, clean, list, add, repair")),
    Verb("runs", 10, N_("Runs: list, show, follow, diagnose, stop, resume, report")),
    Verb("doctor", 11, N_("Check this machine and this installation")),
    Verb("demo", 12, N_("Demo: the whole way on the embedded model")),
    Verb("models", 13, N_("Models: search what there is and what fits, list, show, refresh")),
    Verb("cache", 0, N_("All that takes room: list, verify, clean")),
    Verb("engines", 0, N_("Engines and tools with environments of their own: list, install, roll back")),
    Verb("uninstall", 0, N_("Say what goes and what stays, then remove this program")),
    Verb("config", 0, N_("Show or change settings")),
)


class Session(Protocol):
    """What a verb may ask of whoever called it: the menu, the command line, a test."""

    home: Home
    settings: Settings
    as_json: bool
    yes: bool
    dry_run: bool

    @property
    def interactive(self) -> bool:
        """Whether a person can answer."""

    def say(self, text: str) -> None:
        """A sentence for the person (on standard error under --json)."""

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table for the person."""

    def markdown(self, text: str) -> None:
        """A longer text for the person."""

    def confirm(self, question: str, default: bool = True) -> bool:
        """Ask yes or no; `--yes` answers yes, and without a person the default holds."""

    def read(self, prompt: str) -> str | None:
        """A line typed by the person; None at the end of input."""

    def line(self, prompt: str, kept: Path | None) -> str | None:
        """A line of a conversation: arrow keys bring earlier ones back, those in the file `kept` too, and Alt-Enter
        begins another line of it; None at the end of input."""

    def write(self, text: str) -> None:
        """Text as it comes, without a line's end: streamed answers."""

    def painted(self, pieces: Sequence[tuple[str, str]]) -> None:
        """A text of pieces (style, text): "learnt" and "special" stand out, by colour or by marks; "" does not."""

    def transfer(self, title: str, total_bytes: int) -> Callable[[int], None]:
        """A progress bar of bytes; the function returned is told each piece's size. Safe to call from threads."""

    def follow(self, run: Run, through_ready: bool = False) -> Status:
        """Show a run until it ends or is ready (`through_ready`: until it ends).

        Ctrl-C once asks it to save and stop, twice ends it. Raises the error that the job ended with.
        """

    def watch(self, run: Run) -> Status:
        """Show a run, which somebody started before, until it ends; Ctrl-C ends the watching, not the run.

        Raises the error that the job ended with.
        """

    def publish(self, result: dict[str, Any]) -> None:
        """Print the `--json` object now, not at the end: for servers that stay in the foreground."""


class Command(msgspec.Struct, frozen=True):
    """Something that can be run: its options, and the function that does it and returns the `--json` object."""

    name: str
    summary: str
    options: type[msgspec.Struct]
    run: Callable[[Any, Session], dict[str, Any]]
