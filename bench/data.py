"""Data larger than memory: peak resident memory and rows a second on a generated JSONL file, `python bench/data.py`.

    python bench/data.py [--gigabytes 2] [--folder DIR] [--only NAME …]

Each measurement runs in a process of its own: json.loads on every line and msgspec on every line, which only read; then
what this toolbox does: `resolve` (hash, encoding, format, every row read and checked), `stream` (every row handed out),
`data check` (duplicates, near duplicates and lengths too), `prepare` (every row as the embedded model's token ids, in
the store that training reads), and `train` (that, then a few steps). CPU seconds count all processes, the peak is that
of the largest one.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
WORDS = 4000
PREPARED = """
from pathlib import Path
from toolbox import datasets, device, embedded, files, models, planning, runs
from toolbox.config import Home
from toolbox.runs import Silent
from toolbox.wishes import Wishes
home = Home(Path(PATH).parent / "home")
spec, model = datasets.resolve(PATH, home), models.read(embedded.MODEL, id="demo", source="embedded")
planned = planning.plan_finetune(model, [spec], device.probe().best, Wishes(), home)
run = runs.create(home.runs, "bench", planned)
begun = time.perf_counter()
"""
MEASURES = {
    "json.loads, nothing kept": """
import json
for number, line in enumerate(open(PATH, encoding="utf-8"), 1):
    json.loads(line)
print(number)
""",
    "json.loads, kept in a list": """
import json
print(len([json.loads(line) for line in open(PATH, encoding="utf-8")]))
""",
    "msgspec, nothing kept": """
import msgspec
for number, line in enumerate(open(PATH, "rb"), 1):
    msgspec.json.decode(line)
print(number)
""",
    "resolve": """
from pathlib import Path
from toolbox import datasets
from toolbox.config import Home
print(datasets.resolve(PATH, Home(Path("none"))).rows)
""",
    "stream": """
from pathlib import Path
from toolbox.datasets import contents, reading
held = contents.look([Path(PATH)], {})
print(sum(1 for row in held.rows()))
""",
    "data check": """
from pathlib import Path
from toolbox.datasets import checking, contents
tally = checking.examine(contents.look([Path(PATH)], {}), checking.Wanted(), lambda finding: None)
print(tally.values)
""",
    "prepare": PREPARED
    + """
from toolbox import loading
from toolbox.training import preparing
from toolbox.training.stages import stage_for
made = preparing.prepare(planned, stage_for(planned), loading.tokenizer(planned.model.path), run, Silent())
print(len(made.samples.store), "items,", files.size_of(run.path / preparing.FOLDER) / 1e9, "GB on the disk")
print(len(made.samples) + len(made.held_out))
""",
    "train, 3 steps": PREPARED
    + """
from toolbox import training
planned.training.max_steps = 3
result = training.run(planned, run, Silent())
print(result["rows"] + result["rows_held_out"])
""",
}
MEASURED = """
import os, resource, sys, time
PATH = sys.argv[1]
begun = time.perf_counter()
{code}
spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu, peak = sum(who.ru_utime + who.ru_stime for who in spent), max(who.ru_maxrss for who in spent)
print(time.perf_counter() - begun, cpu, peak * 1024)
"""


def generate(path: Path, size: int) -> int:
    """Write conversations of made-up words until the file has `size` bytes; one row in a hundred repeats another."""
    generator = random.Random(0)
    words = ["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(2, 9))) for _ in range(WORDS)]
    rows, written, line = 0, 0, b""
    with path.open("wb") as file:
        while written < size:
            if rows % 100 or not line:
                question, answer = (" ".join(generator.choices(words, k=count)) for count in (40, 200))
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                line = msgspec.json.encode({"messages": turns}) + b"\n"
            rows, written = rows + 1, written + file.write(line)
    return rows


def measure(name: str, code: str, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURED.format(code=code), str(path)], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode:
        print(f"{name:<28} {done.stderr.strip().rpartition(chr(10))[2]}")
        return
    if name == "prepare":
        print(done.stdout.strip().split("\n")[-3])
    rows, figures = done.stdout.strip().split("\n")[-2:]
    elapsed, cpu, peak = (float(figure) for figure in figures.split())
    rate = int(rows) / elapsed
    print(f"{name:<28} {rate:>10,.0f} {elapsed:>8.1f} {cpu:>8.1f} {peak / 2**20:>9,.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        path = Path(folder) / "rows.jsonl"
        begun = time.perf_counter()
        rows = generate(path, int(given.gigabytes * 1e9))
        print(f"{path.stat().st_size / 1e9:.2f} GB, {rows:,} rows, made in {time.perf_counter() - begun:.0f} s")
        print(f"{'':<28} {'rows/s':>10} {'s':>8} {'CPU s':>8} {'peak MiB':>9}")
        for name, code in MEASURES.items():
            if name in given.only:
                measure(name, code, path)


if __name__ == "__main__":
    main()
