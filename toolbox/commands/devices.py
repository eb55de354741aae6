"""The device that a verb's work goes to; a GPU that can't be used is not passed over in silence."""

from typing import TYPE_CHECKING

from toolbox.commands import Session
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.device import Device


def best(session: Session) -> "Device":
    """The best device here. Where a GPU is lost, or its driver is broken, the reason is said."""
    from toolbox import device

    machine = device.probe()
    if machine.reason:
        told = _("✗ {reason}\n  → This goes to {device} instead.")
        session.say(told.format(reason=machine.reason, device=machine.best.name))
    return machine.best
