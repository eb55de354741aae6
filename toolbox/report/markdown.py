"""Markdown pieces whose contents can't become markup: names and errors come from anywhere."""

import re
from collections.abc import Sequence

SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$&])")


def plain(text: object) -> str:
    """`text` on one line, with everything that Markdown or HTML could act upon escaped."""
    return SPECIAL.sub(r"\\\1", " ".join(str(text).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: object) -> str:
    """`text` as inline code, fenced by more backticks than it holds; a bar is escaped, since tables are cut at bars."""
    line = " ".join(str(text).split()).replace("|", "\\|")
    fence = "`" * (max((len(ticks) for ticks in re.findall("`+", line)), default=0) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(text: str, language: str = "") -> str:
    """A fenced block of code that `text` can't close."""
    fence = "`" * max(3, max((len(ticks) for ticks in re.findall("`+", text)), default=0) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = False) -> str:
    """A table of cells that are Markdown already; `numbers`: all columns but the first are set to the right."""
    rule = ["---"] + ["--:" if numbers else "---"] * (len(columns) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [columns, rule, *rows])


def section(title: str, *parts: str) -> str:
    """A second-level heading over its parts; nothing where all parts are empty."""
    filled = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *filled]) if filled else ""


def folded(title: str, *parts: str) -> str:
    """Parts that a reader opens; nothing where all are empty. `title` is our own words: it stands in HTML as it is."""
    filled = [part for part in parts if part]
    return "\n\n".join([f"<details>\n<summary>{title}</summary>", *filled, "</details>"]) if filled else ""


def image(caption: str, path: str) -> str:
    return f"![{plain(caption)}]({path})"
