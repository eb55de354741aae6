"""A chat template that differs from its base model's is shown before it is used: it decides what a model is told."""

import difflib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from toolbox.commands import Session
from toolbox.i18n import _

SHOWN = 40
"""Lines of a difference that are shown."""


def show(model: Path, adapters: Sequence[Path | None], session: Session) -> None:
    """Show how the model's template differs from that of the model it says it was made from, where that is here too,
    and how each adapter's differs from the model's.

    Of an adapter trained here nothing is said: its template is the base's, or what the person chose.
    """
    for name in _bases(model):
        base = session.home.models / name
        if base != model and (base / "config.json").is_file():
            _compare(base, model, f"{model.parent.name}/{model.name}", session)
    for adapter in adapters:
        if adapter and not adapter.is_relative_to(session.home.runs):
            _compare(model, adapter, adapter.name, session)


def _bases(folder: Path) -> list[str]:
    """What the model's card names as `base_model` (huggingface.co/docs/hub/model-cards), as far as these are ids."""
    from toolbox import models

    try:
        card = (folder / "README.md").read_text("utf-8", errors="replace")
        said = msgspec.yaml.decode(card.split("---", 2)[1]) if card.startswith("---") and card.count("---") > 1 else {}
    except (OSError, msgspec.DecodeError):
        return []
    named = said.get("base_model") if isinstance(said, dict) else None
    names = named if isinstance(named, list) else [named]
    return [name for name in names if isinstance(name, str) and models.HUB_ID.fullmatch(name)]


def _compare(of_base: Path, of_other: Path, name: str, session: Session) -> None:
    from toolbox import templates

    base, own = templates.text_of(of_base), templates.text_of(of_other)
    if own.strip() == base.strip() or not own:
        return
    lines = list(difflib.unified_diff(base.splitlines(), own.splitlines(), _("base model"), name, lineterm="", n=1))
    session.say(
        _("Careful: the chat template of {name} is not its base model's. It decides what the model is told:").format(
            name=name
        )
    )
    session.say("\n".join(lines[:SHOWN]))
    if len(lines) > SHOWN:
        session.say(_("{count} more lines differ.").format(count=len(lines) - SHOWN))
