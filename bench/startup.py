"""How soon the program is there, beside its peers, in turn: `make bench`, or `python bench/startup.py [ROUNDS]`.

Times `yichuidingyin.sh --help`, `trl --help`, `swift --help` (those that are installed under PEERS_HOME/venvs, each in
an environment of its own), the menu's first screen in a pseudo-terminal, and a plan for a model that is not here.
Rounds are interleaved, since machines are noisy: the ratio holds better than the times. The first round warms the disk
cache and is left out.
"""

import os
import pty
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "yichuidingyin.sh"
PEERS = Path(os.environ.get("PEERS_HOME") or Path(tempfile.gettempdir()) / "peers") / "venvs"
LAST_LINE = b"Models: "
"""The menu's last verb: once it is written, the whole first screen stands."""
PLAN = "plan, model not here"
MOST_RATIO, MOST_SCREEN_S, MOST_PLAN_S = 1.2, 0.3, 0.3


def command(*words: str | Path) -> Callable[[], float]:
    """Seconds from start to end of a command, its output thrown away."""

    def timed() -> float:
        begun = time.perf_counter()
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - begun

    return timed


def first_screen() -> float:
    """Seconds from start until the menu's last line is on a terminal of 100 by 40."""
    begun = time.perf_counter()
    pid, terminal = pty.fork()
    if pid == 0:
        environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "40"}
        os.execvpe("bash", ["bash", str(SCRIPT)], environ)
    seen = b""
    while LAST_LINE not in seen:
        if not select.select([terminal], [], [], 30)[0]:
            raise SystemExit("the menu did not appear within 30 s")
        seen += os.read(terminal, 65536)
    taken = time.perf_counter() - begun
    os.write(terminal, b"\x03\x03")
    os.close(terminal)
    os.waitpid(pid, 0)
    return taken


def main(rounds: int) -> int:
    os.environ.update(LANG="en_US.UTF-8", YCDY_LANG="en", YCDY_HOME=tempfile.mkdtemp(prefix="ycdy-bench-"))
    peers = {f"{name} --help": PEERS / name / "bin" / name for name in ("trl", "swift")}
    timed = {
        "yichuidingyin.sh --help": command("bash", SCRIPT, "--help"),
        **{title: command(path, "--help") for title, path in peers.items() if path.exists()},
        "menu, first screen": first_screen,
        PLAN: command("bash", SCRIPT, "plan", "--model", "Qwen/Qwen2.5-7B-Instruct", "--assume-device", "A10:24GiB"),
    }
    taken: dict[str, list[float]] = {title: [] for title in timed}
    for number in range(rounds + 1):
        for title, measure in timed.items():
            seconds = measure()
            if number:
                taken[title].append(seconds)
    median = {title: statistics.median(values) for title, values in taken.items()}
    for title, values in taken.items():
        print(f"{title:<26} median {median[title]:6.3f} s   {min(values):.3f} to {max(values):.3f}")
    ours, screen = median["yichuidingyin.sh --help"], median["menu, first screen"]
    for title in median.keys() & peers:
        print(f"ratio to {title}: {ours / median[title]:.2f}" + (f" (at most {MOST_RATIO})" if "trl" in title else ""))
    print(f"first screen: {screen:.3f} s (at most {MOST_SCREEN_S})")
    print(f"{PLAN}: {median[PLAN]:.3f} s (at most {MOST_PLAN_S})")
    if absent := [title for title in peers if title not in median]:
        print(f"not installed below {PEERS}: {', '.join(absent)}")
    slow = "trl --help" in median and ours > MOST_RATIO * median["trl --help"]
    return int(slow or screen > MOST_SCREEN_S or median[PLAN] > MOST_PLAN_S)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 9))
