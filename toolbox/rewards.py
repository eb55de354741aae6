"""Reward functions by name: what `finetune --stage ppo|grpo --reward NAME` judges answers with.

A reward function is called as `reward(prompts, completions, **columns)`: conversations, the answers to them, and the
other columns of their rows, a list each, as TRL calls them. It returns a number for each answer; None: it does not
judge that one. In `--reward NAME:TEXT`, TEXT is handed to it as `argument`.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from toolbox import plugins
from toolbox.errors import InputError, ToolboxError
from toolbox.i18n import _
from toolbox.suites import numbers

Reward = Callable[..., Sequence[float | None]]
Messages = list[dict[str, Any]]


def exact_match(prompts: list[Messages], completions: list[str], **columns: list[Any]) -> list[float | None]:
    """1 where the answer is the column `answer`, or `solution`, but for case, spaces and the full stop."""
    return [
        None if wanted is None else float(_plain(said) == _plain(str(wanted)))
        for said, wanted in zip(completions, _wanted(columns, len(completions)), strict=True)
    ]


def number_match(prompts: list[Messages], completions: list[str], **columns: list[Any]) -> list[float | None]:
    """1 where the answer's number is that of the column `answer`, or `solution`, as GSM8K is graded."""
    results = [None if wanted is None else numbers.final(str(wanted)) for wanted in _wanted(columns, len(completions))]
    return [
        None if wanted is None else float(numbers.final(said) == wanted)
        for said, wanted in zip(completions, results, strict=True)
    ]


def format_match(prompts: list[Messages], completions: list[str], argument: str, **columns: list[Any]) -> list[float]:
    """1 where the regular expression matches the whole answer, its lines as one."""
    pattern = re.compile(argument, re.DOTALL)
    return [float(bool(pattern.fullmatch(said.strip()))) for said in completions]


def contains(prompts: list[Messages], completions: list[str], argument: str, **columns: list[Any]) -> list[float]:
    """1 where the answer contains that text, in whatever case."""
    return [float(argument.lower() in said.lower()) for said in completions]


def brevity(
    prompts: list[Messages], completions: list[str], argument: str = "200", **columns: list[Any]
) -> list[float]:
    """1 for an empty answer, down to 0 for one of so many characters, or more."""
    return [max(0.0, 1 - len(said) / float(argument)) for said in completions]


def find(wish: str) -> Reward:
    """The reward function that `NAME` or `NAME:ARGUMENT` means.

    Raises NotFoundError where there is none of that name, InputError where its argument is missing or can't be.
    """
    name, colon, argument = wish.partition(":")
    function: Reward = plugins.find("reward", name)
    if colon:
        function = partial(function, argument=argument)
    elif needs_argument(function):
        raise InputError(
            _("The reward function {name} needs an argument.").format(name=name),
            _("Write --reward {name}:TEXT.").format(name=name),
        )
    if name == "format" and not _is_pattern(argument):
        raise InputError(_("{text!r} is no regular expression.").format(text=argument), _("Mend it."))
    return function


def needs_argument(function: Reward) -> bool:
    """Whether it can't do without the text of NAME:TEXT."""
    taken = inspect.signature(function).parameters.get("argument")
    return taken is not None and taken.default is inspect.Parameter.empty


def shown(wish: str, among: Sequence[str]) -> str:
    """A wish's short name: without its argument, unless another one among them has the same name."""
    name = wish.partition(":")[0]
    return name if [other.partition(":")[0] for other in among].count(name) == 1 else wish


def judge(
    name: str, function: Reward, prompts: list[Messages], completions: list[str], columns: Mapping[str, list[Any]]
) -> list[float]:
    """What `function` finds of each answer; NaN where it does not judge one.

    Raises ToolboxError naming the function where it raises, or does not return a number for each answer.
    """
    try:
        found = function(prompts=prompts, completions=completions, **columns)
    except Exception as error:  # it is the person's own code, which may raise anything
        raise _bad(name, _("it raised {error}").format(error=f"{type(error).__name__}: {error}")) from error
    if isinstance(found, str) or not hasattr(found, "__len__"):
        raise _bad(name, _("it returned no list"))
    if len(found) != len(completions):
        raise _bad(
            name, _("it returned {found} values for {count} answers").format(found=len(found), count=len(completions))
        )
    return [_number(name, value) for value in found]


def _number(name: str, value: Any) -> float:
    if value is None:
        return math.nan
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, str):
        raise _bad(name, _("it returned {value!r}, which is no number").format(value=value))
    return number


def _bad(name: str, reason: str) -> ToolboxError:
    return ToolboxError(
        _("The reward function {name} can't be used: {reason}.").format(name=name, reason=reason.rstrip(".")),
        _("It takes prompts, completions and columns, and returns a list with a number for each completion."),
    )


def _wanted(columns: Mapping[str, list[Any]], count: int) -> list[Any]:
    """The right answers: a row's `answer`, else its `solution`, else none."""
    none = [None] * count
    pairs = zip(columns.get("answer", none), columns.get("solution", none), strict=True)
    return [solution if answer is None else answer for answer, solution in pairs]


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).rstrip(".。")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
