"""The memory model held against the dry run: `PYTHONPATH=. python bench/exact.py [--count]`.

    … [--count] [--quick] [--models NAME …] [--methods lora qlora full]

Every model of bench/exact_models.py × LoRA, QLoRA and all weights × three lengths, planned as `plan` does it on an
H100. With --count each is run dry, seconds of CPU time a row, and bench/exact.json keeps what was counted; without, it
is read from there. Bytes are of tensors: what a dry run has not (context, fragmentation) is left out of both. Prints
each error, by parts in MiB (predicted minus counted), then their median, 95th percentile and the worst.
"""

import os

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from exact_models import QUICK, SHAPES
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from toolbox import device, files, models, planning
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.plan import FinetunePlan
from toolbox.training import exact
from toolbox.training.counting import PARTS
from toolbox.wishes import Wishes

METHODS = ("lora", "qlora", "full")
LENGTHS = {512: False, 2048: False, 8192: True}
"""Tokens of a row, and whether activations are computed anew."""
DEVICE = "NVIDIA H100 80GB HBM3:80GiB"
COUNTED = Path(__file__).with_suffix(".json")
MIB = 1 << 20


def written(name: str, folder: Path) -> models.ModelFacts:
    """The facts of a model whose whole config.json is written to a folder of its own."""
    kind, values = SHAPES[name]
    config: Any = AutoConfig.for_model(kind, **values)
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES | MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    config.architectures, config.dtype = [names[kind]], "bfloat16"
    (folder / name).mkdir()
    config.to_json_file(folder / name / "config.json", use_diff=False)
    read = json.loads((folder / name / "config.json").read_text("utf-8"))
    read.get("text_config", {})["dtype"] = "bfloat16"
    return models.facts_of_config(read, id=name, source="local", path=folder / name)


def plans(facts: models.ModelFacts, method: str, on: device.Device, home: Home) -> Iterator[FinetunePlan]:
    """One for each length that the model takes, one row at once."""
    for length, anew in LENGTHS.items():
        if length <= facts.max_position_embeddings:
            wishes = Wishes(
                method=method,
                max_length=length,
                per_device_train_batch_size=1,
                settings=[f"gradient_checkpointing={anew}".lower(), "gradient_accumulation_steps=4"],
            )
            yield planning.plan_finetune(facts, [], on, wishes, home, must_fit=False)


def key(plan: FinetunePlan) -> str:
    """Of a plan in COUNTED."""
    anew = " anew" if plan.training.gradient_checkpointing else ""
    return f"{plan.model.id} {plan.method} {plan.training.max_length}{anew}"


def error(plan: FinetunePlan, counted: exact.Counted) -> float:
    """Of the prediction, as a share of what was counted; a line of the table is printed."""
    fast = {part: plan.estimate.parts_bytes.get(part, 0) for part in PARTS}
    off = sum(fast.values()) / counted.peak_bytes - 1
    parts = " ".join(f"{part} {(fast[part] - counted.parts_bytes[part]) / MIB:+.0f}" for part in PARTS)
    print(
        f"{key(plan):35} {counted.peak_bytes / MIB:9.0f} {off:+7.1%}  {parts}  ({counted.phase}, {counted.operation})",
        flush=True,
    )
    return off


def read() -> dict[str, exact.Counted]:
    """What was counted so far."""
    return msgspec.json.decode(COUNTED.read_bytes(), type=dict[str, exact.Counted]) if COUNTED.exists() else {}


def count(planned: list[FinetunePlan]) -> None:
    """Run dry what `planned` says, and keep it; a model that can't be is told of."""
    made = {}
    try:
        for plan, found in zip(planned, exact.peaks(planned), strict=True):
            made[key(plan)] = found
    except (InputError, RuntimeError, NotImplementedError) as failure:
        print(f"{key(planned[0])} failed: {' '.join(str(failure).split())[:200]}", flush=True)
    known = sorted({**read(), **made}.items())  # another may count too
    files.write_bytes(COUNTED, msgspec.json.format(msgspec.json.encode(dict(known)), indent=1) + b"\n")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--count", action="store_true")
    asked.add_argument("--quick", action="store_true")
    asked.add_argument("--models", nargs="*", default=[])
    asked.add_argument("--methods", nargs="*", default=METHODS)
    words = asked.parse_args()
    on, errors = device.assume(DEVICE), dict[str, list[float]]()
    print(f"{'model, method, tokens':35} {'counted':>9} {'error':>7}  predicted - counted, MiB")
    with tempfile.TemporaryDirectory() as scratch:
        for name in words.models or (QUICK if words.quick else SHAPES):
            facts = written(name, Path(scratch))
            for method in words.methods:
                planned = list(plans(facts, method, on, Home(Path(scratch) / "home")))
                if words.count:
                    count(planned)
                known = read()
                errors.setdefault(method, []).extend(
                    error(plan, known[key(plan)]) for plan in planned if key(plan) in known
                )
    for method, found in [*errors.items(), ("all", [one for some in errors.values() for one in some])]:
        sizes = sorted(map(abs, found))
        if not sizes:
            continue  # nothing of it was counted yet
        print(
            f"{method:6} {len(sizes):4} rows: median {statistics.median(sizes):.1%}, "
            f"95th percentile {sizes[int(0.95 * (len(sizes) - 1))]:.1%}, worst {sizes[-1]:.1%}"
        )


if __name__ == "__main__":
    main()
