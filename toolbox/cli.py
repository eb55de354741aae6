"""The command line: `bash yichuidingyin.sh VERB …`; without a verb it opens the menu."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from toolbox import __version__, i18n, options
from toolbox.commands import VERBS, Command, Verb
from toolbox.config import find_home
from toolbox.errors import DONE, INTERRUPTED, InputError
from toolbox.i18n import N_, _
from toolbox.options import option
from toolbox.ui import help, words


class Common(msgspec.Struct, kw_only=True):
    """The options that every verb takes, before it and behind it."""

    json: Annotated[bool, option(N_("Print the result as one JSON object, on the last line of standard output"))] = (
        False
    )
    yes: Annotated[bool, option(N_("Answer every question with yes"))] = False
    dry_run: Annotated[bool, option(N_("Make and show the plan only"))] = False
    lang: Annotated[Literal["", "zh", "en"], option(N_("Language of all messages (also YCDY_LANG)"))] = ""
    home: Annotated[str, option(N_("Folder of runs, models, data and settings (also YCDY_HOME)"), metavar="DIR")] = ""


COMMON = options.fields(Common)
HELP = {"-h", "--help"}
VERSION = {"-V", "--version"}


def main(argv: Sequence[str]) -> int:
    """Run one command line, or the menu where there is none; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    home = find_home(_peek(argv, "--home"))
    chosen = _peek(argv, "--lang") or os.environ.get("YCDY_LANG") or home.load_settings().lang
    i18n.use(chosen if chosen in i18n.LANGUAGES else i18n.detect())
    try:
        return _run(_text(argv))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED
    except (Exception, KeyboardInterrupt) as error:  # the last resort of the front: a person reads no traceback
        from toolbox.ui.complaints import complain

        return complain(error, home, as_json="--json" in _before_dashes(argv))


def _run(argv: list[str]) -> int:
    flags = _before_dashes(argv)
    if VERSION & flags:
        print(__version__)
        return DONE
    asks_help = bool(HELP & flags)
    common, rest = words.head([word for word in argv if not (asks_help and word in HELP)], COMMON)
    if not rest:
        return _help(help.overview(COMMON)) if asks_help else _menu(common)
    verb = _verb(rest[0])
    commands = verb.commands()
    command, rest = commands[0], rest[1:]
    if command.name != verb.name:
        between, rest = words.head(rest, COMMON)
        common |= between
        if asks_help and not rest:
            return _help(help.actions(verb, commands))
        command, rest = _action(verb, commands, rest), rest[1:]
    if asks_help:
        return _help(help.command(command, COMMON))
    return _do(command, common | words.split(rest, [*options.fields(command.options), *COMMON]))


def _do(command: Command, typed: words.Typed) -> int:
    common = options.build(Common, typed, {}, "")
    given = options.build(command.options, typed, os.environ, command.name)

    from toolbox.ui.terminal import Terminal, print_json

    session = Terminal.open(common.home, as_json=common.json, yes=common.yes, dry_run=common.dry_run)
    try:
        result = command.run(given, session)
    finally:
        session.close()
    if common.json and not session.published:
        print_json(result)
    return int(result.get("exit_status", DONE))


def _menu(common: words.Typed) -> int:
    from toolbox.menu import main as menu

    return menu(options.build(Common, common, {}, ""))


def _help(text: str) -> int:
    print(text)
    return DONE


def _verb(word: str) -> Verb:
    known = [verb.name for verb in VERBS]
    if word in known:
        return VERBS[known.index(word)]
    raise InputError(
        _("There is no verb {word!r}.").format(word=word),
        words.near(word, known) or _("Verbs: {verbs}.").format(verbs=" ".join(known)),
    )


def _action(verb: Verb, commands: Sequence[Command], rest: Sequence[str]) -> Command:
    known = [command.name.split()[-1] for command in commands]
    actions = _("Actions: {actions}.").format(actions=" ".join(known))
    if not rest:
        raise InputError(_("{verb} needs an action.").format(verb=verb.name), actions)
    if rest[0] in known:
        return commands[known.index(rest[0])]
    raise InputError(
        _("{verb} has no action {word!r}.").format(verb=verb.name, word=rest[0]), words.near(rest[0], known) or actions
    )


def _text(argv: Sequence[str]) -> list[str]:
    """The words, which have to be text: JSON and YAML can hold nothing else."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise InputError(_("{word!r} is not UTF-8.").format(word=word), _("Rename it, or link to it.")) from error
    return list(argv)


def _before_dashes(argv: Sequence[str]) -> set[str]:
    """The words up to `--`, in the spelling with dashes."""
    end = argv.index("--") if "--" in argv else len(argv)
    return {words.flag(word) if word.startswith("--") else word for word in argv[:end]}


def _peek(argv: Sequence[str], name: str) -> str:
    """The value of a common option, needed before the words are understood: to say in which language they aren't."""
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word.startswith("--") and words.flag(word) == name:
            return word.partition("=")[2] if "=" in word else following
    return ""
