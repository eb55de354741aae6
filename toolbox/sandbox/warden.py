"""`python -m toolbox.sandbox.warden` confines itself, forks judge and candidate, writes the verdict, ends them all.

It never runs generated code. Standard library only, as it starts without site-packages.
"""

import ctypes
import json
import os
import resource
import signal
import sys
import sysconfig
from typing import Any

from toolbox.sandbox import judging, landlock, namespaces, seccomp
from toolbox.sandbox.values import Link

SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store", "/usr/share/zoneinfo", "/etc/localtime",
)  # fmt: skip
"""Where shared libraries and time zones lie, which modules of the standard library load."""
MOST_BYTES = 1 << 16
OPEN_FILES, FILE_BYTES = 64, 16 << 20
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """An order from standard input, a verdict to standard output, then the end of the whole process group."""
    die_with_parent()
    order = json.load(sys.stdin)
    with open("/proc/self/oom_score_adj", "w") as file:  # where memory runs out, generated code goes first
        file.write("1000")
    order["nothing"] = os.open("/dev/null", os.O_RDWR)  # which is out of reach once confined
    try:
        held = confine(order["root"], order["layers"])
        verdict = {**run(order), "held": held}
    except OSError as error:
        verdict = {"outcome": "refused", "detail": str(error), "held": []}
    print(json.dumps(verdict), flush=True)
    os.killpg(0, signal.SIGKILL)


def confine(root: str, layers: list[str]) -> list[str]:
    """The layers that hold on this machine. Raises OSError where neither keeps files from being read or written."""
    paths = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), f"{sys.base_prefix}/lib", *SYSTEM]
    there = {os.path.normpath(path) for path in paths if os.path.exists(path)}
    readable = [path for path in sorted(there) if not any(path.startswith(f"{other}/") for other in there)]
    held, why = [], []
    if "namespaces" in layers:
        try:
            namespaces.enter(root, readable)
            held.append("namespaces")
        except OSError as error:
            why.append(f"namespaces: {error}")
    if "landlock" in layers:
        try:
            landlock.apply(readable, ["/tmp"] if held else [])
            held.append("landlock")
        except OSError as error:
            why.append(f"landlock: {error}")
    if not held:
        raise OSError("; ".join(why))
    return [*held, "seccomp"]


def run(order: dict[str, Any]) -> dict[str, Any]:
    """What the judge says, or why it says nothing. The judge comes first: as pid 1, it ends the candidate with it."""
    source, target = os.pipe()
    judge = os.fork()
    if not judge:
        os.close(source)
        _judge(order, target)
    os.close(target)
    said = b""
    while len(said) < MOST_BYTES and (piece := os.read(source, MOST_BYTES)):
        said += piece
    status = os.waitpid(judge, 0)[1]
    if said:
        return dict(json.loads(said))
    return {"outcome": "time" if os.WIFSIGNALED(status) else "ended", "detail": "the tests did not end by themselves"}


def _judge(order: dict[str, Any], target: int) -> None:
    """The judge's process. Neither it nor the candidate ever returns from here, whatever is raised."""
    try:
        die_with_parent()
        asked, asking = os.pipe()
        answered, answering = os.pipe()
        candidate = os.fork()
        if not candidate:
            die_with_parent()
            shut_in(order, [asked, answering])
            judging.candidate(order["code"], Link(asked, answering))
            os._exit(0)
        try:
            shut_in(order, [answered, asking, target])
            verdict = judging.judge(order["test"], Link(answered, asking), candidate)
        except OSError as error:
            verdict = {"outcome": "refused", "detail": f"seccomp: {error}"}
        os.write(target, json.dumps(verdict).encode())
    finally:
        os._exit(1)


def shut_in(order: dict[str, Any], kept: list[int]) -> None:
    """Bound this process, close all it does not need, and leave it a list of harmless system calls."""
    for number in range(3):
        os.dup2(order["nothing"], number)
    low = 3
    for number in sorted(kept):
        os.closerange(low, number)
        low = number + 1
    os.closerange(low, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    bounds = {
        resource.RLIMIT_AS: order["memory_bytes"], resource.RLIMIT_CPU: order["cpu_s"], resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: FILE_BYTES, resource.RLIMIT_NOFILE: OPEN_FILES,
    }  # fmt: skip
    for kind, bound in bounds.items():
        resource.setrlimit(kind, (bound, bound))
    sys.set_int_max_str_digits(0)
    seccomp.apply()


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))


if __name__ == "__main__":
    main()
