"""Who may talk to a server: whoever on this machine has its key; others only with a key that the person chose."""

import hashlib
import ipaddress
import os
import secrets
import shlex
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.ports import LOOPBACK

SHORTEST = 8
KEYS_LOOK = N_("As in: - {name: alice, key: sk-…, requests_per_minute: 60, tokens_per_minute: 90000, concurrent: 4}")


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


class ApiKey(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A key of a keys file, with what its holder may ask for; 0: as much as the server can."""

    name: Annotated[str, Meta(pattern=r"^[\w.@-]{1,64}$")]
    """What logs and metrics call it."""
    key: str = ""
    key_sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Instead of the key: `printf %s KEY | sha256sum`."""
    requests_per_minute: Annotated[int, Meta(ge=0)] = 0
    tokens_per_minute: Annotated[int, Meta(ge=0)] = 0
    concurrent: Annotated[int, Meta(ge=0)] = 0

    @property
    def digest(self) -> str:
        return self.key_sha256 or hashlib.sha256(self.key.encode()).hexdigest()


OWNER = "owner"
"""What the server's own key is called; no file can give it another one."""


def read_keys(path: Path) -> list[ApiKey]:
    """The keys in the YAML file `path`. Raises InputError where it is torn, says too little, or others can read it."""
    try:
        found = path.stat()
        keys = msgspec.yaml.decode(path.read_bytes(), type=list[ApiKey])
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            _("The keys in {path} can't be read: {reason}.").format(path=path, reason=error), _(KEYS_LOOK)
        ) from error
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & 0o077:
        raise InputError(
            _("Others on this machine can read, or own, the keys in {path}.").format(path=path),
            _("Take that from them: {command}").format(command=f"chmod 600 {shlex.quote(str(path))}"),
        )
    names, digests = [OWNER, *(key.name for key in keys)], [key.digest for key in keys]
    for key in keys:
        if bool(key.key) == bool(key.key_sha256):
            raise InputError(
                _("{path}: {name} needs a key, or its SHA-256.").format(path=path, name=key.name), _(KEYS_LOOK)
            )
        if key.key:
            check(LOOPBACK, key.key)
        if names.count(key.name) > 1 or digests.count(key.digest) > 1:
            raise InputError(_("{path}: {name}, or its key, is there twice.").format(path=path, name=key.name))
    return keys


def server(address: str) -> str:
    """The address of an OpenAI-compatible server, without the /v1 that may stand at its end.

    Raises InputError where it is none.
    """
    try:
        parts = urlsplit(address)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known or not address.isprintable() or not address.isascii() or " " in address:
        raise InputError(
            _("{address} is not the address of a server.").format(address=repr(address)),
            _("Write it as http://127.0.0.1:8080/v1."),
        )
    return address.rstrip("/").removesuffix("/v1")
