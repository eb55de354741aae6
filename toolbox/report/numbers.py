"""Numbers as a report writes them: counts, moments, values."""

import time

from toolbox.i18n import _


def count(number: float) -> str:
    """A count of things, as 2.05M or 7.6B; small ones whole."""
    for limit, unit in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:,.0f}"


def moment(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(epoch_s))


def minute(epoch_s: float) -> str:
    """A moment in few characters, on one line."""
    return unbroken(time.strftime("%Y-%m-%d %H:%M", time.localtime(epoch_s)))


def unbroken(text: str) -> str:
    """`text` with spaces at which no line is broken."""
    return text.replace(" ", "\u00a0")


def number(value: object) -> str:
    """A value as people write it: four significant digits for a fraction, yes and no for a switch."""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)
