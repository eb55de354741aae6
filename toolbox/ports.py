"""TCP ports: one to listen on, or in its place the next one that is free."""

import errno
import random
import socket
from pathlib import Path

from toolbox.errors import BusyError, InputError
from toolbox.i18n import _

LOOPBACK = "127.0.0.1"
TRIED = 50
"""How many ports above a taken one are looked at."""
FIRST_UNUSED = 20000
"""Below lie the ports that well-known programs listen on."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on `host` and `port` (0: any free one).

    Raises BusyError naming the next free port where this one is taken, InputError where the address is not to be had.
    """
    try:
        return _bound(host, port)
    except socket.gaierror as error:
        raise InputError(_("{host} is not an address of this machine.").format(host=host), _address()) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise BusyError(_("Port {port} is taken.").format(port=port), _next(host, port)) from error
        reason = error.strerror or str(error)
        raise InputError(
            _("{host} port {port} can't be listened on: {reason}.").format(host=host, port=port, reason=reason),
            _address(),
        ) from error


def free(host: str = LOOPBACK) -> int:
    """A port that is free now, and that no outgoing connection takes before somebody listens on it."""
    for _attempt in range(TRIED):
        try:
            with _bound(host, random.randrange(FIRST_UNUSED, max(_first_outgoing(), FIRST_UNUSED + 1))) as probe:
                return int(probe.getsockname()[1])
        except OSError:
            continue
    with _bound(host, 0) as probe:
        return int(probe.getsockname()[1])


def _first_outgoing() -> int:
    """The lowest port that the system gives to outgoing connections: Linux's own setting, else IANA's 49152."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 49152


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol by name: asyncio sets TCP_NODELAY only where it is, and without it each answer waits for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # So that a server that was stopped a moment ago does not block its own port; two that listen still collide.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(512)
    except BaseException:
        listener.close()
        raise
    return listener


def _next(host: str, taken: int) -> str:
    for port in range(taken + 1, min(taken + 1 + TRIED, 65536)):
        try:
            _bound(host, port).close()
        except OSError:
            continue
        return _("The next free one: --port {port}").format(port=port)
    return _("Any free one: --port 0")


def _address() -> str:
    return _("Use --host 127.0.0.1, or an address that this machine has, and a --port from 1024 to 65535.")
