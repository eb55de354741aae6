"""Numbers for people: sizes, durations, moments, shares."""

import math
import time

from toolbox.i18n import _


def size(count: float) -> str:
    """Bytes in binary units, as 18.7 GiB."""
    power = min(4, int(math.log(max(count, 1), 1024)))
    return f"{count / 1024**power:.{0 if power == 0 else 1}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def count(number: float) -> str:
    """A count of things, as 2.05M or 7.6B; small ones whole."""
    for limit, unit in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:,.0f}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return _("{s} s").format(s=f"{seconds:.3g}" if seconds < 10 else f"{seconds:.0f}")
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return _("{m} min {s} s").format(m=minutes, s=rest)
    return _("{h} h {m} min").format(h=minutes // 60, m=minutes % 60)


def moment(epoch_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(epoch_s))


def number(value: object) -> str:
    """A value as people write it: four significant digits for a fraction, yes and no for a switch."""
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)
