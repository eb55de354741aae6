"""Who may talk to a server: whoever on this machine has its key; others only with a key that the person chose."""

import ipaddress
import secrets

from toolbox.errors import InputError
from toolbox.i18n import _

SHORTEST = 8


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(host: str, key: str) -> None:
    """Raises InputError for a key that no client can send, and for an open address without a key of one's own."""
    if key and (len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key):
        raise InputError(
            _("This API key can't be used."),
            _("A key has {count} or more letters, digits and signs, without spaces.").format(count=SHORTEST),
        )
    if not key and not is_loopback(host):
        raise InputError(
            _("{host} can be reached from outside, and no API key was given.").format(host=host),
            _("Give one with --api-key or YCDY_SERVE_API_KEY, or use --host 127.0.0.1."),
        )


def new_key() -> str:
    return f"sk-{secrets.token_urlsafe(32)}"
