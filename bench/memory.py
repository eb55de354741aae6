"""The memory model against what others measured: `python bench/memory.py [TABLE.csv …]`.

Rows of ../shared/facts/memory.csv, litgpt's and torchtune's own tables, and of memory_elsewhere.csv, or of any table of
the same columns. A row of another project counts as transformers' Trainer. Peaks are of torch's allocator; whether a
row fits counts the CUDA context too.
"""

import csv
import json
import os
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import msgspec

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
FACTS = HERE.parent.parent / "shared" / "facts"
sys.path[:0] = [str(HERE), str(HERE.parent)]

from loops import Parts, litgpt, tables, torchtune, trainer  # noqa: E402

from toolbox import device, memory  # noqa: E402

GB, GIB = 10**9, 1 << 30
SHOWN_FROM = 0.1
"""Errors from here on are shown with their parts."""
GPUS = {
    "A100-SXM4-40GB": "A100:40GiB", "A100": "A100:80GiB", "A10G 24GB": "A10G:24GiB", "4090": "RTX 4090:24GiB",
    "A6000": "A6000:48GiB",
}  # fmt: skip


class Compared(msgspec.Struct, kw_only=True, frozen=True):
    """A row, and what the model says of it. Peaks in the table's own unit."""

    label: str
    project: str
    method: str
    trust: str
    unit: int
    measured: float | None
    """None: it ran out of memory."""
    parts: Parts
    fits: bool

    @property
    def predicted(self) -> float:
        return sum(self.parts.values()) / self.unit

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1 if self.measured else 0.0

    def line(self) -> str:
        measured = f"{self.measured:8.2f}" if self.measured else "     OOM"
        verdict = f"{self.error:+7.1%}" if self.measured else "   fits!" if self.fits else "      no"
        shown = f"{self.label:72}{measured}{self.predicted:8.2f} {verdict}"
        if abs(self.error) < SHOWN_FROM:
            return shown
        return shown + "  " + ", ".join(f"{name} {size / self.unit:.2f}" for name, size in self.parts.items() if size)


def compare(row: tables.Row, shapes: dict[str, dict[str, object]]) -> Compared:
    """What the model says of a row, whose shape is known."""
    shape = tables.shape_of(row["model"], shapes) or {}
    project = row["repo"].split("/")[1]
    if project == "litgpt":
        parts = litgpt.peak(tables.litgpt_job(row, shape))
    elif project == "torchtune":
        parts = torchtune.peak(tables.torchtune_job(row, shape))
    else:
        parts = trainer.peak(row, shape)
    words = (row["model"], row["method"], row["variant"], row["quant"].replace("none", ""))
    size = f"{row['batch']}x{row['seq_len']}" if row["seq_len"] else ""
    gpus = "" if row["n_gpu"] == "1" else f"on {row['n_gpu']} GPUs"
    room = device.assume(GPUS.get(row["gpu"], row["gpu"])).memory_free_bytes
    return Compared(
        label=" ".join(filter(None, (project, *words, size, gpus))),
        project=project,
        method=row["method"],
        trust=row["trust"],
        unit=GB if row["peak_unit"] == "GB" else GIB,
        measured=None if row["peak"] == "OOM" else float(row["peak"]),
        parts=parts,
        fits=sum(parts.values()) + memory.OVERHEAD_BYTES["cuda"] <= room,
    )


def summary(name: str, rows: Iterable[Compared]) -> str:
    """Errors of some rows in a line."""
    rows = list(rows)
    errors = sorted(abs(row.error) for row in rows if row.measured)
    out = [row for row in rows if not row.measured]
    wrong = f"{sum(row.fits for row in out)} of {len(out)} that ran out called a fit"
    if not errors:
        return f"{name:24} {wrong}"
    last = errors[min(len(errors) - 1, int(0.95 * len(errors)))]
    middle, most = statistics.median(errors), errors[-1]
    return f"{name:24} {len(errors):4} rows, median {middle:6.2%}, 95 % {last:6.2%}, most {most:6.2%}; {wrong}"


def read(path: Path) -> list[tables.Row]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def compare_table(path: Path, shapes: dict[str, dict[str, object]]) -> list[Compared]:
    """Print a table's rows, those that are left out, and errors by project, method and trust."""
    rows = read(path)
    known = [row for row in rows if tables.shape_of(row["model"], shapes)]
    found = [compare(row, shapes) for row in known]
    print(f"{path.name}: measured, predicted, error, and where it is above {SHOWN_FROM:.0%} the parts")
    for row in found:
        print(row.line())
    absent = sorted({row["model"] for row in rows if row not in known})
    print(f"{len(rows) - len(known)} rows are left out." + (f" No shape of {', '.join(absent)}." if absent else ""))
    groups: dict[str, list[Compared]] = defaultdict(list)
    for row in found:
        groups[f"{row.project} {row.method}"].append(row)
    for trust, meaning in (("A", "trust A: all settings known"), ("B", "trust B: some inferred")):
        groups[meaning] = [row for row in found if row.trust == trust]
    for name, rows_of_it in [*groups.items(), ("all", found)]:
        print(summary(name, rows_of_it))
    print()
    return found


def main() -> None:
    if not FACTS.is_dir():
        print(f"{FACTS} is not here: nothing to compare with.")
        return
    shapes = json.loads((FACTS / "model_configs.json").read_text(encoding="utf-8"))
    for path in map(Path, sys.argv[1:] or (FACTS / "memory.csv", HERE / "memory_elsewhere.csv")):
        compare_table(path, shapes)


if __name__ == "__main__":
    main()
