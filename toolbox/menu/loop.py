"""The menu's loop: show, choose, ask, run, and once more."""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import i18n, options
from toolbox.commands import VERBS, Command, Verb
from toolbox.errors import DONE, InputError
from toolbox.i18n import _
from toolbox.menu import header, lists
from toolbox.menu.prompts import Back, Entry, Lines, Prompts, Quit
from toolbox.menu.questions import Questions, command_line, remembered
from toolbox.ui.complaints import complain
from toolbox.ui.terminal import Terminal

if TYPE_CHECKING:
    from toolbox.cli import Common

LANGUAGE = "l"


def main(common: "Common") -> int:
    """Show the menu until the person leaves; `common` are the options that hold for every verb."""
    session = Terminal.open(common.home, as_json=common.json, yes=common.yes, dry_run=common.dry_run)
    try:
        _Menu(session, _words(common)).run()
    except (Back, Quit):
        return DONE
    finally:
        session.close()
    return DONE


def _words(common: "Common") -> list[str]:
    """The common options, as they stand in the command lines that are shown."""
    words = [f"--{name.replace('_', '-')}" for name in ("json", "yes", "dry_run") if getattr(common, name)]
    return [*words, *(["--home", common.home] if common.home else [])]


class _Menu:
    def __init__(self, session: Terminal, common: list[str]) -> None:
        self._session = session
        self._common = common
        self._at = 0

    @cached_property
    def prompts(self) -> Prompts:
        if not self._session.interactive:
            return Lines(self._session.say)
        from toolbox.menu.terminal import TerminalPrompts

        return TerminalPrompts(self._session.stream)

    def run(self) -> None:
        """Until Back or Quit is raised."""
        while True:
            header.draw(self._session)
            chosen = self._choose()
            if chosen == LANGUAGE:
                self._switch_language()
                continue
            try:
                self._run(next(verb for verb in VERBS if verb.name == chosen))
            except Back:
                continue
            self.prompts.pause()

    def _choose(self) -> str:
        listed = [verb for verb in VERBS if verb.number]
        entries = [Entry(str(verb.number), _(verb.summary), verb.name, verb.name) for verb in listed]
        other = {"zh": "English", "en": "中文"}[i18n.language()]
        entries.append(Entry(LANGUAGE, other, LANGUAGE))
        question, footer = _("What shall be done?"), _("0 or q leaves")
        chosen = self._loaded(question, entries, footer).choose(question, entries, self._at, footer)
        if chosen != LANGUAGE:
            self._at = next(index for index, entry in enumerate(entries) if entry.value == chosen)
        return chosen

    def _loaded(self, question: str, entries: Sequence[Entry], footer: str) -> Prompts:
        """The prompts; what they stand on takes longer to load than all else together, so the list is shown before."""
        session = self._session
        if "prompts" in self.__dict__ or not (session.interactive and session.live):
            return self.prompts
        with lists.preview(session.stream, lists.fragments(question, entries, self._at, footer)):
            return self.prompts

    def _switch_language(self) -> None:
        i18n.use("en" if i18n.language() == "zh" else "zh")
        settings = msgspec.structs.replace(self._session.settings, lang=i18n.language())
        self._session.settings = settings
        with suppress(InputError, OSError):
            self._session.home.save_settings(settings)

    def _run(self, verb: Verb) -> None:
        """Ask and do; what goes wrong is said, and the menu goes on."""
        session = self._session
        try:
            command = self._command(verb)
            given = self._ask(command)
            session.published = False
            result = command.run(given, session)
            if not session.published:
                session.publish(result)
        except (Back, Quit):
            raise
        except (Exception, KeyboardInterrupt) as error:  # said by `complain`; the menu must outlive a verb
            session.close()
            complain(error, session.home, session.as_json)

    def _command(self, verb: Verb) -> Command:
        commands = verb.commands()
        if len(commands) == 1:
            return commands[0]
        entries = [
            Entry(str(number), _(command.summary), command.name, command.name)
            for number, command in enumerate(commands, start=1)
        ]
        chosen = self.prompts.choose(_("What shall be done?"), entries, 0, _("0 back · q quit"))
        return next(command for command in commands if command.name == chosen)

    def _ask(self, command: Command) -> Any:
        home = self._session.home
        answers = home.load_answers()
        if not answers and (kept := home.path / "answers.json").exists():
            self._session.say(_("{path} can't be read; earlier answers are forgotten.").format(path=kept))
        try:
            texts = Questions(self.prompts, home, self._session.say).ask(command, answers.get(command.name, {}))
        except KeyboardInterrupt as gone:  # between two questions no prompt is there to take Ctrl-C
            raise Back from gone
        with suppress(InputError, OSError):  # a folder that can't be written is what doctor is asked about
            home.save_answers({**answers, command.name: remembered(command, texts)})
        self._session.say(_("The same in one line: {command}").format(
            command=command_line(command, texts, self._common)))  # fmt: skip
        return options.build(command.options, texts, os.environ, command.name)
