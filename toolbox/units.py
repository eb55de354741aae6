"""Bytes and seconds as people read them."""

import math

_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")


def size(count: float) -> str:
    """A number of bytes, as `512 B`, `3.4 MiB`, `24.0 GiB`."""
    power = min(int(math.log(abs(count), 1024)), len(_BYTES) - 1) if abs(count) >= 1 else 0
    return f"{count:.0f} B" if power == 0 else f"{count / 1024**power:.1f} {_BYTES[power]}"


def duration(seconds: float) -> str:
    """A number of seconds, as `0:07`, `12:05`, `3:04:05`, `2d 03:04:05`."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
