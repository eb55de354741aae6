"""The words of a command line, told apart by the verb's own option fields."""

import difflib
from collections.abc import Iterator, Sequence
from typing import NoReturn

from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.options import NO, YES, Field

Typed = dict[str, str | list[str] | None]


def split(words: Sequence[str], fields: Sequence[Field]) -> Typed:
    """What was typed for each field, unconverted: `--name value`, `--name=value`, `--no-name`, words without a name.

    An option that takes many takes every word up to the next option. `-` and `_` are the same in names; after `--`
    nothing is an option. Raises InputError for what no field takes.
    """
    splitter = _Splitter(fields)
    rest = splitter.options(words)
    for word in rest:
        splitter.place(word)
    return splitter.typed


def head(words: Sequence[str], fields: Sequence[Field]) -> tuple[Typed, list[str]]:
    """What was typed for `fields` before the first word without a name; and the words from there on."""
    splitter = _Splitter(fields)
    return splitter.typed, splitter.options(words, stop=True)


def flag(word: str) -> str:
    """The option's name in `--max_length=8`: `--max-length`."""
    return word.partition("=")[0].replace("_", "-")


class _Splitter:
    def __init__(self, fields: Sequence[Field]) -> None:
        self._named = {field.flag: field for field in fields if not field.positional}
        self._negated = {f"--no-{flag[2:]}": field for flag, field in self._named.items() if field.kind is bool}
        self._positional = [field for field in fields if field.positional]
        self.typed: Typed = {}

    def options(self, words: Sequence[str], stop: bool = False) -> list[str]:
        """Take the options among `words`; returns the words without a name, with `stop` all from the first of them."""
        rest = iter(words)
        bare: list[str] = []
        word = next(rest, None)
        while word is not None and word != "--":
            if word.startswith("-") and word != "-":
                word = self._option(word, rest)
            elif stop:
                return [word, *rest]
            else:
                bare.append(word)
                word = next(rest, None)
        return [*bare, *rest]

    def _option(self, word: str, rest: Iterator[str]) -> str | None:
        """Take the option that `word` names, and its values; returns the next word, which is not its own."""
        name, equals, value = flag(word), "=" in word, word.partition("=")[2]
        if name in self._negated and not equals:
            self._keep(self._negated[name], "no")
            return next(rest, None)
        field = self._named.get(name) or self._unknown(word)
        if equals:
            self._keep(field, value)
            return next(rest, None)
        following = next(rest, None)
        if field.kind is bool:
            own = following is not None and following.lower() in YES | NO
            self._keep(field, str(following) if own else "yes")
            return next(rest, None) if own else following
        if following is None or following.startswith("--"):
            raise _without_value(field)
        self._keep(field, following)
        following = next(rest, None)
        while field.many and following is not None and not following.startswith("-"):
            self._keep(field, following)
            following = next(rest, None)
        return following

    def place(self, word: str) -> None:
        """A word without a name belongs to the first positional field that is not full."""
        for field in self._positional:
            if field.many or field.name not in self.typed:
                return self._keep(field, word)
        raise InputError(
            _("{word!r} is one word too many.").format(word=word),
            _("A value with spaces needs quotes; a value of an option stands behind its name, as in --model demo."),
        )

    def _keep(self, field: Field, value: str) -> None:
        if not field.many:
            self.typed[field.name] = value
            return
        before = self.typed.get(field.name)
        self.typed[field.name] = [*(before if isinstance(before, list) else []), value]

    def _unknown(self, word: str) -> NoReturn:
        known = [*self._named, *self._negated]
        raise InputError(
            _("There is no option {word}.").format(word=word.partition("=")[0]),
            near(flag(word), known) or _("Options: {options}.").format(options=" ".join(self._named)),
        )


def _without_value(field: Field) -> InputError:
    return InputError(
        _("{flag} needs a value: {help}.").format(flag=field.flag, help=_(field.help)),
        _("It takes {what}.").format(what=field.takes()),
    )


def near(word: str, known: Sequence[str]) -> str:
    """ "Did you mean …?" where something known is spelt like `word`; else empty."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return _("Did you mean {words}?").format(words=_(" or ").join(close)) if close else ""
