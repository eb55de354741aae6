"""Keeps an engine on a leash: `python leash.py COMMAND…` ends with everything it started when its standard input does.

Standard input is a pipe that only our parent holds, so it ends however the parent dies, `kill -9` included.
Standard library only: this is the one process that an engine costs in addition.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 5.0


def main(command: list[str]) -> int:
    """Run `command` in the process group that we lead, since our parent starts us in a new session."""
    # A handler, not SIG_IGN: that would be inherited by the engine. The group's SIGTERM must not end us first.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    engine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    orphaned = threading.Event()
    threading.Thread(target=_follow_parent, args=[engine, orphaned], daemon=True).start()
    status = engine.wait()
    if orphaned.is_set():  # nobody else is left to end what the engine itself started
        os.killpg(0, signal.SIGKILL)
    return status


def _follow_parent(engine: "subprocess.Popen[bytes]", orphaned: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 1):  # not through sys.stdin: its lock, held here, would make our own exit fail
        pass
    orphaned.set()
    os.killpg(0, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        engine.wait(GRACE_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
