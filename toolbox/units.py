"""Bytes and seconds as people read them."""

import math
import re

from toolbox.errors import InputError
from toolbox.i18n import _

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """A number of bytes, as `512 B`, `3.4 MiB`, `24.0 GiB`."""
    power = min(int(math.log(abs(count), 1024)), len(_BYTES) - 1) if abs(count) >= 1 else 0
    return f"{count:.0f} B" if power == 0 else f"{count / 1024**power:.1f} {_BYTES[power]}"


def rate(text: str) -> float:
    """Bytes a second, of `10M`, `500K` or a number of bytes, as curl and wget read them; 0 where nothing is said."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)(?:i?B)?(?:/s)?", text.strip(), re.IGNORECASE)
    if text.strip() and not match:
        raise InputError(
            _("{text!r} is not a number of bytes a second.").format(text=text), _("Write it like 10M, 500K or 1.5G.")
        )
    return float(match[1]) * 1024 ** " KMG".index(match[2].upper() or " ") if match else 0.0


def duration(seconds: float) -> str:
    """A number of seconds, as `0:07`, `12:05`, `3:04:05`, `2d 03:04:05`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
