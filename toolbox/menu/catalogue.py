"""The numbered catalogue of models: what for, how large, which; what fits here is marked, the rest is dimmed."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from toolbox import device, fitting, models, registry
from toolbox.commands.models import billions, said
from toolbox.config import Home
from toolbox.fitting import Fit
from toolbox.i18n import N_, _
from toolbox.menu.prompts import Back, Entry, Prompts
from toolbox.registry import Model, Wanted

SIZES = (
    (0.0, 1.0, N_("below 1B")), (1.0, 4.0, N_("1B to 4B")), (4.0, 10.0, N_("4B to 10B")),
    (10.0, 20.0, N_("10B to 20B")), (20.0, 45.0, N_("20B to 45B")), (45.0, 120.0, N_("45B to 120B")),
    (120.0, float("inf"), N_("120B and more")),
)  # fmt: skip
"""From, below, in words; as GPUs go: what 8, 12, 24, 48 and 80 GiB and several of those can tune."""
MOST, FEWEST = 20, 5
"""Models of a page."""
AROUND = 8
"""Lines of a screen that a page leaves to what stands around it."""
SEARCH, NEXT, EARLIER = "s", "n", "p"
"""Keys beside the numbers."""


class _Line(msgspec.Struct, frozen=True):
    """A model, what fits, and whether it is on this machine."""

    model: Model
    fit: Fit
    here: bool


class Catalogue:
    """Finds a model by a few numbers."""

    def __init__(self, prompts: Prompts, home: Home, say: Callable[[str], None]) -> None:
        self._prompts, self._home, self._say = prompts, home, say
        self._device = device.probe().best
        self._here = {name.lower() for name in models.known(home)}

    def pick(self) -> str:
        """The name of the model chosen, or typed. Raises Back where none was, and Quit."""
        while True:
            lines = self._lines(Wanted())
            kinds = [kind for kind in registry.KINDS if any(registry.kind(line.model) == kind for line in lines)]
            entries = [
                self._group(number, _(registry.KINDS[kind]), kind, [
                    line for line in lines if registry.kind(line.model) == kind
                ])
                for number, kind in enumerate(kinds, start=1)
            ]  # fmt: skip
            question = _("Models by what they are for; for {device}").format(device=self._device.name)
            chosen = self._choose(question, [*entries, _search()])
            try:
                if chosen in kinds:
                    return self._of_kind(chosen, [line for line in lines if registry.kind(line.model) == chosen])
                return chosen if _is_name(chosen) else self._searched(chosen)
            except Back:
                continue

    def _of_kind(self, kind: str, lines: Sequence[_Line]) -> str:
        """A size, then a page of it. Raises Back to the kinds."""
        while True:
            sized = [(_(words), [line for line in lines if low <= line.model.params_b < high])
                     for low, high, words in SIZES]  # fmt: skip
            sized = [(words, group) for words, group in sized if group]
            entries = [
                self._group(number, words, str(number), group) for number, (words, group) in enumerate(sized, start=1)
            ]
            chosen = self._choose(_(registry.KINDS[kind]), [*entries, _search()])
            try:
                if chosen.isdigit() and int(chosen) <= len(sized):
                    words, group = sized[int(chosen) - 1]
                    return self._page(f"{_(registry.KINDS[kind])}, {words}", group)
                return chosen if _is_name(chosen) else self._searched(chosen, kind)
            except Back:
                continue

    def _searched(self, word: str, kind: str = "") -> str:
        """A page of what `word` is about; asked for where it is only the key of the search."""
        if word == SEARCH:
            word = self._prompts.text(_("Part of a name, a size as 7b, a family or a licence"), "").strip()
        if word in ("", "0"):
            raise Back
        word = word.removeprefix("/")
        if "/" in word and registry.find(word, self._home):
            return word
        lines = self._lines(Wanted(words=word.split(), kind=kind))
        if not lines:
            self._say(_("No model is about {word!r}.").format(word=word))
            raise Back
        return self._page(_("Models about {word!r}").format(word=word), lines)

    def _page(self, title: str, lines: Sequence[_Line]) -> str:
        """The model chosen out of `lines`, a screen at a time: those here first, then those that fit."""
        lines = sorted(lines, key=lambda line: (not line.here, not line.fit.methods, bool(line.fit.refused)))
        each = max(FEWEST, min(MOST, shutil.get_terminal_size().lines - AROUND))
        pages, at = -(-len(lines) // each), 0
        while True:
            shown = lines[at * each : (at + 1) * each]
            entries = [_entry(number, line) for number, line in enumerate(shown, start=1)]
            entries += [Entry(NEXT, _("next page"), NEXT, quiet=True)] if at + 1 < pages else []
            entries += [Entry(EARLIER, _("page before"), EARLIER, quiet=True)] if at else []
            question = f"{title} · {at + 1}/{pages} · {self._device.name}" if pages > 1 else title
            chosen = self._choose(question, [*entries, _search()])
            if chosen in (NEXT, EARLIER):
                at += 1 if chosen == NEXT else -1
            elif _is_name(chosen):
                return chosen
            else:
                return self._searched(chosen)

    def _lines(self, wanted: Wanted) -> list[_Line]:
        found = fitting.fits(registry.search(wanted, self._home), self._device, self._home)
        return [_Line(model, fit, any(name.lower() in self._here for name in model.names)) for model, fit in found]

    def _choose(self, question: str, entries: list[Entry]) -> str:
        return self._prompts.choose(question, entries, 0, _("0 back · q quit"), free=True)

    def _group(self, number: int, title: str, value: str, lines: Sequence[_Line]) -> Entry:
        fitting_ = sum(bool(line.fit.methods) for line in lines)
        note = _("{fit} of {count} can be fine-tuned here").format(fit=fitting_, count=len(lines))
        return Entry(str(number), title, value, note=note, quiet=True, faint=not fitting_)


def _entry(number: int, line: _Line) -> Entry:
    notes = [billions(line.model.params_b), _("here") if line.here else "", said(line.fit)]
    mark = "✓ " if line.fit.methods else "  "
    return Entry(str(number), mark + line.model.name, line.model.name, note=" · ".join(filter(None, notes)),
                 faint=not line.fit.methods)  # fmt: skip


def _is_name(typed: str) -> bool:
    """Whether it names a model or a folder; a word after a slash that leads nowhere is searched for, as in a pager."""
    return "/" in typed and (not typed.startswith("/") or Path(typed).exists())


def _search() -> Entry:
    return Entry(SEARCH, _("search: type a word"), SEARCH, quiet=True)
