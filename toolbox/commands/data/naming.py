"""`data list`, `data add`: data sets by name; toolbox/datasets/registry.py knows them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Session
from toolbox.datasets import columns, registry
from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.commands.data import AddOptions, ListOptions
    from toolbox.datasets.registry import Named


def show(options: "ListOptions", session: Session) -> dict[str, Any]:
    """The data sets that every word is about. Raises NotFoundError where there is none."""
    found = registry.search(options.words, session.home)
    if not found:
        raise NotFoundError(
            _("No named data set is about {words}.").format(words=" ".join(options.words)),
            _("Search with one word: part of a name, zh or en, or one of {tasks}.").format(
                tasks=" ".join(registry.TASKS)
            ),
        )
    session.table(
        _("Named data sets ({count})").format(count=len(found)),
        (_("Name"), _("Task"), _("Language"), _("Where"), _("Subsets")),
        [(named.name, named.task, named.language, _where(named, session), _subsets(named)) for named in found],
    )
    return {"datasets": [_facts(named, session) for named in found]}


def add(options: "AddOptions", session: Session) -> dict[str, Any]:
    """Write the description. Raises InputError where it says nothing of where the data are, or the name is taken."""
    places = (options.file, options.modelscope, options.huggingface)
    if not any(places):
        raise InputError(
            _("It is not said where {name} is.").format(name=options.name),
            _("Name --file, --modelscope or --huggingface."),
        )
    file = str(Path(options.file).expanduser().absolute()) if options.file else ""
    if file and not Path(file).exists():
        raise NotFoundError(_("There is nothing at {path}.").format(path=file), _("Check the file's path."))
    described = registry.Described(
        file=file,
        modelscope=options.modelscope,
        huggingface=options.huggingface,
        columns=columns.parse(options.columns),
        task=options.task,
        language=options.language,
    )
    path = registry.add(options.name, described, session.home)
    session.say(_("{name} is known now; its description: {path}").format(name=options.name, path=path))
    return {"name": options.name, "path": str(path)}


def _where(named: "Named", session: Session) -> str:
    if named.file:
        return named.file
    return named.hub_id(session.settings.source)


def _subsets(named: "Named") -> str:
    shown = " ".join(named.subsets[:3])
    return f"{shown} …" if len(named.subsets) > 3 else shown


def _facts(named: "Named", session: Session) -> dict[str, Any]:
    return {**msgspec.to_builtins(named), "where": _where(named, session)}
