"""A program of ours that runs in another interpreter: on a leash, read while it speaks, ended when its job is."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from toolbox.serving.engine_process import LEASH

LOOK_EVERY_S = 0.5
BAR = re.compile(r"\d+%\||^\s*$")
"""A line that is a progress bar, or nothing."""


def run(
    python: Path, script: Path, work: Path, environ: Mapping[str, str], heed: Callable[[str], None]
) -> tuple[int, str]:
    """`python script work`, in the folder of `work`; returns its exit status and its last words: bars and
    indented lines, as a traceback has them, are none.

    `heed` is told each line, and an empty one now and then, so that a stop is heeded while it is silent; what it raises
    ends the program and all that it started. Lines other than bars go into the log.
    """
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(LEASH), str(python), "-P", str(script), str(work)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=work.parent, env=dict(environ),
        start_new_session=True,
    )  # fmt: skip
    last = ""
    try:
        for line in _lines(process):
            if not BAR.search(line):
                print(line, flush=True)
                last = last if line[0].isspace() else line
            heed(line)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    return status, last


def killed(status: int) -> bool:
    """Whether it was killed, as the system does where memory runs out."""
    return status & 0xFF in (256 - signal.SIGKILL, 128 + signal.SIGKILL)  # as the leash hands it on, or a shell would


def _lines(process: "subprocess.Popen[bytes]") -> Iterator[str]:
    """What it prints, its bars too; and an empty line now and then."""
    assert process.stdout
    left = b""
    while True:
        if not select.select([process.stdout], [], [], LOOK_EVERY_S)[0]:
            yield ""
            continue
        if not (read := os.read(process.stdout.fileno(), 1 << 16)):
            break
        *lines, left = re.split(rb"[\r\n]+", left + read)
        yield from (line.decode("utf-8", "replace") for line in lines)
    yield left.decode("utf-8", "replace")
    process.wait()
