"""The command line: `bash yichuidingyin.sh VERB …`; without a verb it opens the menu."""

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Literal

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
    if HELP & flags:
        print(_help(_locate([word for word in argv if word not in HELP])))
        return DONE
    place = _locate(argv)
    return _do(*_understood(place)) if place.verb else _menu(place.typed)


class _Place(msgspec.Struct):
    """How far the words lead: to the whole, a verb with actions, or a command; and what is left of them."""

    verb: Verb | None
    command: Command | None
    typed: words.Typed
    rest: list[str]


def understand(argv: Sequence[str]) -> tuple[Command, Any, Common]:
    """The command that a command line asks for, its options, and the common ones. Raises InputError."""
    return _understood(_locate(argv))


def _locate(argv: Sequence[str]) -> _Place:
    typed, rest = words.head(argv, COMMON)
    if not rest:
        return _Place(None, None, typed, rest)
    verb = _verb(rest[0])
    commands = verb.commands()
    if commands[0].name == verb.name:
        return _Place(verb, commands[0], typed, rest[1:])
    between, rest = words.head(rest[1:], COMMON)
    return _Place(verb, _action(verb, rest[0]) if rest else None, typed | between, rest[1:])


def _understood(place: _Place) -> tuple[Command, Any, Common]:
    if place.verb is None:
        raise InputError(_("A verb is missing."), _("Verbs: {verbs}.").format(verbs=" ".join(_verbs())))
    if place.command is None:
        raise InputError(_("{verb} needs an action.").format(verb=place.verb.name), _actions(place.verb))
    own = options.fields(place.command.options)
    typed = place.typed | words.split(place.rest, [*own, *COMMON])
    given = options.build(place.command.options, typed, os.environ, place.command.name)
    return place.command, given, options.build(Common, typed, {}, "")


def _help(place: _Place) -> str:
    if place.command:
        return help.command(place.command, COMMON)
    return help.actions(place.verb, place.verb.commands()) if place.verb else help.overview(COMMON)


def _do(command: Command, given: Any, common: Common) -> int:
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


def _verbs() -> list[str]:
    return [verb.name for verb in VERBS]


def _verb(word: str) -> Verb:
    if word in _verbs():
        return VERBS[_verbs().index(word)]
    raise InputError(
        _("There is no verb {word!r}.").format(word=word),
        words.near(word, _verbs()) or _("Verbs: {verbs}.").format(verbs=" ".join(_verbs())),
    )


def _action(verb: Verb, word: str) -> Command:
    known = {command.name.split()[-1]: command for command in verb.commands()}
    if word in known:
        return known[word]
    raise InputError(
        _("{verb} has no action {word!r}.").format(verb=verb.name, word=word),
        words.near(word, list(known)) or _actions(verb),
    )


def _actions(verb: Verb) -> str:
    return _("Actions: {actions}.").format(actions=" ".join(command.name.split()[-1] for command in verb.commands()))


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
    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith("--") and words.flag(word) == name:
            return word.partition("=")[2] if "=" in word else following
    return ""
