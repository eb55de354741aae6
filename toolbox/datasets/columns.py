"""Which column means what: the names people use, the choice between them said aloud, and `--columns KEY=COLUMN`."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from toolbox.errors import InputError
from toolbox.i18n import _

SYNONYMS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "chat_rounds"),
    "prompt": ("instruction", "query", "prompt", "question", "problem", "input"),
    "input": ("input",),
    "response": (
        "output", "response", "completion", "answer", "answers", "target", "targets", "answer_key", "solution",
        "text", "content",
    ),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "tools": ("tools", "functions"),
    "chosen": ("chosen", "chosen_response", "chosen_messages"),
    "rejected": ("rejected", "rejected_response", "rejected_messages"),
    "label": ("label", "kto_tag"),
    "text": ("text", "content", "raw_content"),
}  # fmt: skip
"""What can be asked of a row, and the columns that hold it, best first; compared without case."""

TAGS = ("role", "content", "user", "assistant", "system_role", "tool", "tool_call")
"""What the turns of a conversation call things where they don't use a known name: `--columns role=speaker`."""

WEAK = ("input", "text", "content", "solution")
"""Names that often hold something else: no reason to speak of ambiguity."""


def parse(pairs: Iterable[str]) -> dict[str, str]:
    """`KEY=COLUMN` of `--columns` as a mapping. Raises InputError naming the keys there are."""
    mapping = {}
    for pair in pairs:
        key, equals, column = pair.partition("=")
        if not (key and equals and column):
            raise InputError(
                _("--columns can't be {value!r}.").format(value=pair), _("It takes KEY=COLUMN, as response=answer.")
            )
        mapping[key.strip()] = column.strip()
    check_keys(mapping)
    return mapping


def check_keys(mapping: Mapping[str, str]) -> None:
    """Raises InputError where a key is none of those a row can be asked for."""
    known = [*SYNONYMS, *TAGS]
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise InputError(
                _("--columns knows no {key!r}.").format(key=key),
                _("Did you mean {name}?").format(name=near[0])
                if near
                else _("Keys: {keys}.").format(keys=" ".join(known)),
            )


class Choice:
    """Columns of some rows, matched to keys; what was asked for goes first, and no column is taken twice."""

    def __init__(self, columns: Sequence[str], asked: Mapping[str, str]) -> None:
        self.asked = asked
        self.columns = columns
        self._by_name = {column.strip().lower(): column for column in reversed(columns)}
        self.taken: dict[str, str] = {}
        self.notes: list[str] = []

    def take(self, key: str) -> str | None:
        """The column that holds `key`, remembered; None where there is none."""
        if key in self.asked:
            if self.asked[key] not in self.columns:
                raise InputError(
                    _("There is no column {column!r}; found: {found}.").format(
                        column=self.asked[key], found=", ".join(self.columns)
                    ),
                    _("Name another one: --columns {key}=COLUMN").format(key=key),
                )
            self.taken[key] = self.asked[key]
            return self.asked[key]
        spoken_for = {*self.taken.values(), *self.asked.values()}
        found = [self._by_name[name] for name in SYNONYMS[key] if name in self._by_name]
        found = [column for column in found if column not in spoken_for]
        if not found:
            return None
        self.taken[key] = found[0]
        rivals = [column for column in found[1:] if column.strip().lower() not in WEAK]
        if rivals and found[0].strip().lower() not in WEAK:
            self.notes.append(
                _(
                    "{columns} could each be the {key}; {chosen} was taken. Change it with --columns {key}=COLUMN."
                ).format(columns=", ".join([found[0], *rivals]), key=key, chosen=found[0])
            )
        return found[0]

    def drop(self, key: str) -> None:
        self.taken.pop(key, None)
