"""Pictures of the real program for the README: runs a command in tmux, types keys, and draws the screen as SVG.

python scripts/screenshot.py docs/menu.svg --columns 84 --rows 24 -- bash yichuidingyin.sh --lang zh
"""

import argparse
import html
import itertools
import re
import shlex
import subprocess
import time
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

SESSION = "yichuidingyin-screenshot"


def tmux(*words: str) -> str:
    return subprocess.run(["tmux", "-L", SESSION, *words], check=True, capture_output=True, text=True).stdout


def wait_for_quiet(seconds: float, limit: float) -> str:
    """The screen, once it has not changed for `seconds`, or after `limit` seconds."""
    screen, since, start = "", time.monotonic(), time.monotonic()
    while time.monotonic() - start < limit and time.monotonic() - since < seconds:
        time.sleep(0.1)
        now = tmux("capture-pane", "-e", "-p")
        if now != screen:
            screen, since = now, time.monotonic()
    return screen


def widened(svg: str) -> str:
    """`svg` with each run of wide or of narrow characters in its own cells: rich gives each the room of one."""

    def placed(found: re.Match[str]) -> str:
        start, x, middle, length, end, content = found.groups()
        text = html.unescape(content)
        cell, at, pieces = float(length) / len(text), float(x), []
        for _wide, run in itertools.groupby(text, key=lambda character: cell_len(character) > 1):
            piece = "".join(run)
            width = cell * cell_len(piece)
            drawn = html.escape(piece).replace("\xa0", "&#160;")
            pieces.append(f'{start}x="{at:g}"{middle}textLength="{width:g}"{end}>{drawn}</text>')
            at += width
        return "".join(pieces)

    return re.sub(r'(<text [^>]*)x="([^"]*)"([^>]*)textLength="([^"]*)"([^>]*)>([^<]+)</text>', placed, svg)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--title", default="一锤定音")
    parser.add_argument("--columns", type=int, default=100)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--keys", default="", help="typed after the first screen, split at spaces, as tmux names them")
    parser.add_argument("--quiet", type=float, default=1.5, help="seconds without a change that mean: done")
    parser.add_argument("--limit", type=float, default=30.0)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()

    command = shlex.join(args.command) + "; sleep 600"
    tmux("new-session", "-d", "-x", str(args.columns), "-y", str(args.rows), command)
    try:
        screen = wait_for_quiet(args.quiet, args.limit)
        for key in args.keys.split():
            tmux("send-keys", key)
            screen = wait_for_quiet(args.quiet, args.limit)
    finally:
        tmux("kill-server")
    console = Console(record=True, width=args.columns, file=open("/dev/null", "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text.from_ansi(screen.rstrip()))
    args.output.write_text(widened(console.export_svg(title=args.title)), encoding="utf-8")


if __name__ == "__main__":
    main()
