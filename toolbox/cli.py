"""The command line: one argument parser, built from the verbs' own option fields."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from toolbox import __version__, i18n, options
from toolbox.commands import VERBS, Command, Verb
from toolbox.errors import DONE, INTERRUPTED, InputError, Interrupted, ToolboxError
from toolbox.i18n import N_, _

COMMON = {
    "json": N_("Print the result as one JSON object, on the last line of standard output"),
    "yes": N_("Answer every question with its default"),
    "dry_run": N_("Make and show the plan only"),
}


class _Parser(argparse.ArgumentParser):
    """argparse for the splitting of words; its complaints become our sentences."""

    def error(self, message: str) -> NoReturn:
        raise InputError(_("The command line is not understood: {reason}.").format(reason=message), _("See --help."))


def main(argv: Sequence[str]) -> int:
    """Run one command line, or the menu where there is none; returns the exit status."""
    words = [_dashes(word) for word in argv]
    i18n.use(_chosen_language(words))
    as_json = "--json" in words
    try:
        if not _verb_of(words) and not {"-h", "--help", "--version"} & set(words):
            from toolbox.menu import main as menu

            return menu(_common(words))
        return _run(words)
    except ToolboxError as error:
        return _complain(error, as_json)
    except KeyboardInterrupt:
        return _complain(Interrupted(_("Interrupted.")), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED


def _run(words: list[str]) -> int:
    verb = _verb_of(words)
    if verb is None:
        return _overview(words)
    commands = verb.commands()
    parser, by_name = _parser(verb, commands)
    typed = vars(parser.parse_args(words))
    command = by_name[f"{verb.name} {typed['action']}" if "action" in typed else verb.name]
    given = options.build(command.options, typed, os.environ, command.name)

    from toolbox.ui import Terminal, print_json

    session = Terminal.open(typed["home"], as_json=typed["json"], yes=typed["yes"], dry_run=typed["dry_run"])
    try:
        result = command.run(given, session)
    finally:
        session.close()
    if typed["json"] and not session.published:
        print_json(result)
    return int(result.get("exit_status", DONE)) if isinstance(result, dict) else DONE


def _common(words: list[str]) -> dict[str, Any]:
    """The common options given without a verb: they hold for the whole menu."""
    parser = _Parser(prog="yichuidingyin.sh", add_help=False)
    _add_common(parser)
    return vars(parser.parse_args(words))


def _verb_of(words: Sequence[str]) -> Verb | None:
    """The verb on the command line: the first word that is not an option, nor an option's value."""
    takes_value = {"--home", "--lang"}
    previous = ""
    for word in words:
        if not word.startswith("-") and previous not in takes_value:
            for verb in VERBS:
                if verb.name == word:
                    return verb
            raise InputError(
                _("There is no verb {word!r}.").format(word=word),
                _("Verbs: {verbs}.").format(verbs=", ".join(verb.name for verb in VERBS)),
            )
        previous = word
    return None


def _overview(words: Sequence[str]) -> int:
    if "--version" in words:
        print(__version__)
        return DONE
    parser = _Parser(prog="yichuidingyin.sh", add_help=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    width = max(len(verb.name) for verb in VERBS) + 2
    lines = [f"  {verb.name:<{width}}{_(verb.summary)}" for verb in VERBS]
    parser.description = "\n".join(
        [_("One key from a bare machine to a fine-tuned, proven, served model."), "", *lines]
    )
    parser.usage = _("bash yichuidingyin.sh [VERB …] — without a verb: the menu")
    parser.epilog = _("bash yichuidingyin.sh VERB --help shows a verb's options.")
    _add_common(parser)
    parser.print_help()
    return DONE


def _parser(verb: Verb, commands: Sequence[Command]) -> tuple[_Parser, dict[str, Command]]:
    parser = _Parser(prog="yichuidingyin.sh", allow_abbrev=False)
    _add_common(parser)
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    top = verbs.add_parser(verb.name, description=_(verb.summary), help=_(verb.summary), allow_abbrev=False)
    if len(commands) == 1 and commands[0].name == verb.name:
        _fill(top, commands[0])
    else:
        actions = top.add_subparsers(dest="action", required=True, metavar="ACTION")
        for command in commands:
            action = command.name.split()[-1]
            _fill(
                actions.add_parser(action, description=_(command.summary), help=_(command.summary), allow_abbrev=False),
                command,
            )
    return parser, {command.name: command for command in commands}


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    for field in options.fields(command.options):
        help = _(field.help)
        if field.takes() and field.values:
            help += f" [{field.takes()}]"
        if not field.required and field.default not in (None, "", [], False):
            help += " ({default})".format(default=_("default: {value}").format(value=field.default))
        help = help.replace("%", "%%")
        metavar = field.metavar or field.name.upper()
        if field.positional:
            parser.add_argument(field.name, nargs="*" if field.many else "?", metavar=metavar, help=help)
        elif field.kind is bool and not field.default:
            parser.add_argument(field.flag, dest=field.name, nargs="?", const="yes", metavar="yes|no", help=help)
        else:
            parser.add_argument(
                field.flag,
                dest=field.name,
                nargs="+" if field.many else None,
                action=_Extend if field.many else "store",
                metavar=metavar,
                help=help,
            )
    _add_common(parser, suppressed=True)


class _Extend(argparse.Action):
    """`--dataset a b --dataset c` is three values."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), *values])


def _add_common(parser: argparse.ArgumentParser, suppressed: bool = False) -> None:
    """The options that every verb takes; accepted before and after the verb."""
    default: Any = argparse.SUPPRESS if suppressed else None
    for name, help in COMMON.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            action="store_true",
            default=argparse.SUPPRESS if suppressed else False,
            help=_(help),
        )
    parser.add_argument("--lang", choices=i18n.LANGUAGES, default=default, help=_("Language"))
    parser.add_argument(
        "--home", metavar="DIR", default=default, help=_("Folder of runs, models, data and settings (also YCDY_HOME)")
    )


def _dashes(word: str) -> str:
    """`--max_length=8` as `--max-length=8`: both spellings are typed."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _chosen_language(words: Sequence[str]) -> str:
    for index, word in enumerate(words):
        if word.startswith("--lang="):
            return word.partition("=")[2]
        if word == "--lang" and index + 1 < len(words):
            return words[index + 1]
    from toolbox.config import find_home

    chosen = os.environ.get("YCDY_LANG")
    return chosen or find_home(_home_of(words)).load_settings().lang or i18n.detect()


def _home_of(words: Sequence[str]) -> str | None:
    for index, word in enumerate(words):
        if word.startswith("--home="):
            return word.partition("=")[2]
        if word == "--home" and index + 1 < len(words):
            return words[index + 1]
    return None


def _complain(error: ToolboxError, as_json: bool) -> int:
    print(f"✗ {error.message}" + (f"\n  → {error.remedy}" if error.remedy else ""), file=sys.stderr)
    if as_json:
        from toolbox.ui import print_json

        print_json({"error": error.as_dict()})
    return error.exit_status
