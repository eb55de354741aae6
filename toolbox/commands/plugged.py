"""`--plugin FILE.py`: loads what a person names, on the command line, in `config set plugins` or in a recipe."""

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from toolbox.errors import InputError
from toolbox.i18n import N_, _

if TYPE_CHECKING:
    from toolbox.commands import Session
    from toolbox.plugins import File

HELP = N_("Python files of your own losses, metrics, tuners … (docs/plugins.md)")
PREPARE = "bash yichuidingyin.sh --prepare trackers"


def load(named: Sequence[str], session: "Session", recipe: str = "") -> "list[File]":
    """Run the files, each once: those of the settings, of the recipe that was named, of the command line.

    Raises InputError naming the file, the line and the reason where one is broken.
    """
    from toolbox import plugins

    paths = list(filter(None, session.settings.plugins.split(os.pathsep)))
    if recipe:
        from toolbox import recipe as recipes

        paths += recipes.find(recipe, session.home).plugins
    found = [Path(name).expanduser().absolute() for name in [*paths, *named]]
    return [plugins.load(path) for path in dict.fromkeys(found)]


def trackers(named: Sequence[str]) -> list[str]:
    """`--tracker` as a setting. Raises InputError where the package of one is not installed."""
    for name in named:
        if name in ("wandb", "swanlab") and not importlib.util.find_spec(name):
            raise InputError(
                _("The package {name} is not installed.").format(name=name),
                _("Install it: {command}").format(command=PREPARE),
            )
    chosen = [] if "none" in named else list(dict.fromkeys(named))
    return [f"report_to=[{', '.join(chosen)}]"] if named else []
