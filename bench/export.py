"""Exports compared: size, perplexity and answers before and after, each format by the command itself.

`python bench/export.py [--model demo] [--formats gguf:q4_0,awq:w4a16] [--rows 64]` prints a table in Markdown. Formats
whose environment is not installed are said and left out; the home is the one that YCDY_HOME names.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import exports, units  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--formats", default=",".join(every()), help="FORMAT:TYPE,…")
    parser.add_argument("--rows", type=int, default=64, help="rows to calibrate with")
    given = parser.parse_args()
    print("| format | size | perplexity | answers equal | their tokens equal | loaded again here by | loads it |")
    print("|---|---|---|---|---|---|---|")
    for place, named in enumerate(given.formats.split(",")):
        format, _colon, kind = named.partition(":")
        made = export(given.model, format, kind, given.rows)
        if "error" in made:
            print(f"{named}: {made['error']['message']}", file=sys.stderr)
            continue
        if not place:
            print(row("as it was", made["bytes_before"], {"perplexity": made["perplexity_before"]}, made))
        for reader in made["readers"]:
            print(row(f"{format} {kind}", made["bytes"], reader, made), flush=True)


def every() -> list[str]:
    """All formats that hold whole models, with those of their types that have few bits."""
    whole = (format for format in exports.FORMATS.values() if not format.adapter_only)
    return [f"{format.name}:{kind}" for format in whole for kind, how in format.types.items() if how.bits < 9]


def export(model: str, format: str, kind: str, rows: int) -> dict[str, Any]:
    """What the command's `--json` says; its export is deleted again."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-P", "-m", "toolbox", "export", "--model", model, "--format", format, "--type", kind,
            "--calibration-rows", str(rows), "--output", f"{folder}/made", "--json",
        ]  # fmt: skip
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(name: str, size: int, reader: dict[str, Any], made: dict[str, Any]) -> str:
    """One line of the table."""
    answers = f"{reader['answers_equal']}/{made['prompts']}" if "answers_equal" in reader else ""
    tokens = f"{reader['answer_tokens_equal']}/{reader['answer_tokens']}" if answers else ""
    loads = ", ".join(exports.FORMATS[made["format"]].loaded_by) if answers else ""
    cells = (name, units.size(size), f"{reader['perplexity']:.2f}", answers, tokens, reader.get("loaded_by", ""), loads)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
