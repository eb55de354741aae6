"""One description of each option: the command line, the menu and the docs are derived from it.

An option is a field of a msgspec Struct, `name: Annotated[TYPE, option(HELP, …)] = DEFAULT`.
"""

import math
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from toolbox.errors import InputError
from toolbox.i18n import N_, _

KINDS = {int: N_("a whole number"), float: N_("a number"), bool: N_("yes or no"), str: N_("a text")}
YES, NO = {"yes", "y", "true", "on", "1", "是"}, {"no", "n", "false", "off", "0", "否"}


def option(
    help: str,
    *,
    ask: bool = False,
    positional: bool = False,
    metavar: str = "",
    ge: float | None = None,
    le: float | None = None,
    choices: str = "",
    unless: str = "",
    when: str = "",
    secret: bool = False,
) -> msgspec.Meta:
    """Describe a field.

    `ask`: the menu asks for it. `positional`: given without its name. `ge`, `le`: bounds of a number.
    `choices`: what to offer in the menu — "models", "catalogue" (those here, and all that are known by name), "hub"
    (the latter only), "kinds" of models, "datasets", "adapters", "runs", "pairs" of runs,
    "active" (runs that are alive), "resumable", "tuned" (runs that made a model), "exportable" (of
    those, all but exports), "adapted" (runs that made an adapter), "judges" (runs that made a
    reward model), "suites", "methods", "stages" and "formats" (notes beside the values), "rewards", "recipes"
    or "sources".
    `unless`: the menu asks only where the option of that name was left out, and then insists. `when`: "OPTION=VALUE
    VALUE …", the menu asks only where that option was answered so. `secret`: its value is never echoed, remembered or
    printed.
    """
    extra = {"ask": ask, "positional": positional, "metavar": metavar, "choices": choices}
    extra |= {"unless": unless, "when": when, "secret": secret}
    return msgspec.Meta(description=help, ge=ge, le=le, extra=extra)


class Field(msgspec.Struct, frozen=True):
    """An option as the front ends see it."""

    name: str
    kind: type
    help: str
    default: Any
    required: bool
    many: bool
    values: tuple[str, ...]
    ge: float | None
    le: float | None
    ask: bool
    positional: bool
    metavar: str
    choices: str
    unless: str
    when: str
    secret: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def parse(self, text: str, called: str = "") -> Any:
        """`text` as one value of this option, which a person knows as `called` (its flag). Raises InputError."""
        try:
            value = self._convert(text.strip())
        except ValueError:
            value = None
        if value is None or not self._within(value):
            raise InputError(
                _("{flag} can't be {value!r}.").format(flag=called or self.flag, value=text),
                _("It takes {what}.").format(what=self.takes()),
            )
        return value

    def _convert(self, text: str) -> Any:
        if self.values:
            return text if text in self.values else None
        if self.kind is bool:
            return True if text.lower() in YES else False if text.lower() in NO else None
        return self.kind(text)

    def _within(self, value: Any) -> bool:
        if self.kind not in (int, float):
            return True
        return math.isfinite(value) and (self.ge is None or value >= self.ge) and (self.le is None or value <= self.le)

    def takes(self) -> str:
        """What it accepts, in words: the values, or the kind with its bounds."""
        if self.values:
            return " | ".join(value for value in self.values if value)
        bounds = [f">= {self.ge:g}" if self.ge is not None else "", f"<= {self.le:g}" if self.le is not None else ""]
        return ", ".join([_(KINDS[self.kind]), *filter(None, bounds)])


def fields(options: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The options of a Struct, in the order they are written."""
    hints = get_type_hints(options, include_extras=True)
    return tuple(_field(info, hints[info.name]) for info in msgspec.structs.fields(options))


def _field(info: msgspec.structs.FieldInfo, hint: Any) -> Field:
    hint, meta = get_args(hint) if get_origin(hint) is Annotated else (hint, option(""))
    kind, many, values = _unwrap(hint)
    default = info.default_factory() if info.default_factory is not msgspec.NODEFAULT else info.default
    required = default is msgspec.NODEFAULT
    return Field(
        name=info.name, kind=kind, help=meta.description or "", default=None if required else default,
        required=required, many=many, values=values, ge=meta.ge, le=meta.le, **(meta.extra or {}),
    )  # fmt: skip


def _unwrap(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    """(kind, many, values) of `int`, `str | None`, `list[str]`, `Literal[...]`."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is list:
        return get_args(hint)[0], True, ()
    if get_origin(hint) is Literal:
        return str, False, get_args(hint)
    return hint, False, ()


def build(
    options: type[msgspec.Struct], texts: Mapping[str, str | list[str] | None], environ: Mapping[str, str], verb: str
) -> Any:
    """An options object from what was typed; what was not typed comes from YCDY_VERB_OPTION, then from the default.

    Raises InputError naming the option that is wrong or missing.
    """
    values: dict[str, Any] = {}
    for field in fields(options):
        typed = texts.get(field.name)
        if typed is None or typed == []:
            typed = environ.get(f"YCDY_{verb}_{field.name}".upper().replace(" ", "_")) or None
            typed = typed.split(",") if typed and field.many else typed
        if typed is None:
            if field.required:
                raise missing(field, verb)
            continue
        values[field.name] = [field.parse(text) for text in typed] if field.many else field.parse(str(typed))
    return options(**values)


def missing(field: Field, verb: str) -> InputError:
    name = field.metavar or field.name.upper() if field.positional else field.flag
    return InputError(
        _("{name} is missing ({help}).").format(name=name, help=_(field.help)),
        _("See: {command}").format(command=f"bash yichuidingyin.sh {verb} --help"),
    )
