"""Plans for tests: a finetune plan on the embedded model, as `finetune` would make it, with whatever a test changes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from toolbox import datasets, embedded, models, runs
from toolbox.config import Home
from toolbox.device import Device
from toolbox.memory import Estimate
from toolbox.models import ModelFacts
from toolbox.plan import FinetunePlan
from toolbox.recipe import Training

LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear"}
NF4: dict[str, Any] = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"}
CPU = Device(kind="cpu", name="CPU", memory_total_bytes=8 << 30, memory_free_bytes=8 << 30, bf16=False, cores=2)
NO_ESTIMATE = Estimate(
    peak_bytes=1 << 28, parts_bytes={}, device_bytes=8 << 30, fits=True, time_s=1.0, disk_bytes=1 << 26
)


def finetune_plan(home: Path, *names: str, method: str = "lora", **changes: Any) -> FinetunePlan:
    """Data sets `names` (the persona by default) for 6 steps; `changes` are fields of the plan or of its training."""
    training: dict[str, Any] = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 256, "max_steps": 6,
        "learning_rate": 5e-3, "save_steps": 2, "eval_steps": 3,
    }  # fmt: skip
    training |= {name: changes.pop(name) for name in set(changes) & set(Training.__struct_fields__)}
    fields: dict[str, Any] = {
        "entry": "toolbox.training:run", "model": demo_facts(), "device": CPU, "recipe": "test", "why": "a test",
        "quantization": "nf4" if method == "qlora" else "none", "dtype": "float32", "eval_rows": 8,
        "datasets": [datasets.resolve(name, Home(home)) for name in names or ("demo-persona",)],
        "LoraConfig": {} if method == "full" else LORA,
        "BitsAndBytesConfig": NF4 if method == "qlora" else {}, "estimate": NO_ESTIMATE,
    }  # fmt: skip
    return FinetunePlan(method=method, training=Training(**training), **(fields | changes))  # type: ignore[arg-type]


def finetune_run(home: Path, *names: str, **changes: Any) -> runs.Run:
    """A run directory made from such a plan."""
    return runs.create(home / "runs", "test", finetune_plan(home, *names, **changes))


def demo_facts() -> ModelFacts:
    return models.read(embedded.MODEL, id="demo", source="embedded")


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def stored(folder: Path, items: list[Any]) -> Any:
    """`items` in a store, as a training has them."""
    from toolbox.training import store

    def fill(writer: store.Writer) -> store.Facts:
        writer.add(store.pack(items, type(items[0])), 1)
        return store.Facts()

    store.write(folder, "a test", fill)
    made = store.read(folder, type(items[0]), "a test")
    assert made
    return store.Items(made, np.arange(len(items)))
