"""What the registry says of a name that a person gave to a verb: the facts of a model that is not here, a warning."""

from typing import TYPE_CHECKING

from toolbox.commands import Session
from toolbox.errors import NotFoundError
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.hub.store import Kind
    from toolbox.models import ModelFacts


def facts(name: str, session: Session) -> "ModelFacts":
    """What planning needs to know of a model: of its files, of its config.json alone, or of the registry; it is said
    which.

    Raises NotFoundError where nothing is known of it, and what `models.resolve` raises.
    """
    from toolbox import models, registry
    from toolbox.registry import shapes

    warn(name, session)
    try:
        return models.resolve(name, session.home, weights=False)
    except NotFoundError as error:
        if not (listed := registry.find(name, session.home)):
            raise _unknown(name, error, session) from error
    found = shapes.facts(listed, session.home.models / listed.name)
    if published := shapes.source(listed):
        session.say(_("{name} is not on this machine; its shape is known ({source}).").format(
            name=name, source=published))  # fmt: skip
    else:
        session.say(
            _(
                "{name} is not on this machine, and its shape is estimated from its size: the figures are less sure."
                " For exact ones: download {name} --include config.json"
            ).format(name=name)
        )
    if not listed.native:
        session.say(
            _(
                "{name} needs program code of its own repository, which is not run unasked: fetch it, then models trust"
            ).format(name=name)
        )
    return found


def ids(name: str, session: Session) -> dict[str, str]:
    """By hub, the id that a known model has there."""
    from toolbox import registry

    listed = registry.find(name, session.home)
    return {"huggingface": listed.huggingface, "modelscope": listed.modelscope} if listed else {}


def warn(name: str, session: Session, kind: "Kind" = "model") -> None:
    """Say what is suspicious about a name that is nearly a known one."""
    from toolbox.registry import lookalikes

    if suspicious := lookalikes.warning(name, session.home, kind):
        session.say(_("Careful: {warning}").format(warning=suspicious))


def _unknown(name: str, error: NotFoundError, session: Session) -> NotFoundError:
    """`error` with what helps to plan for a model of a hub that nothing is known of."""
    from toolbox import models
    from toolbox.registry import lookalikes

    if near := lookalikes.nearest(name, session.home):
        return NotFoundError(error.message, _("Did you mean {name}?").format(name=near))
    if models.HUB_ID.fullmatch(name) and not session.home.models.joinpath(name).exists():
        return NotFoundError(
            error.message,
            _("Its config.json is enough to plan with, a few KB: download {name} --include config.json").format(
                name=name
            ),
        )
    return error
