"""The memory model against peaks that others measured on GPUs, with their training loops on its tape (bench/loops)."""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest
from hardware import ROOT

sys.path.insert(0, str(ROOT / "bench"))

import memory as bench
from loops import Job, litgpt, torchtune

from toolbox import networks

LLAMA_7B = networks.llama_like(4096, 11008, 32, 32, 32, 128, 32000, tied=False)
LLAMA_13B = networks.llama_like(5120, 13824, 40, 40, 40, 128, 32000, tied=False)
LLAMA_3B = networks.llama_like(3072, 8192, 28, 24, 8, 128, 128256, tied=True)
LORA: dict[str, Any] = {"method": "lora", "rank": 8, "targets": ("query", "value"), "repeats": False}
QLORA = LORA | {"method": "qlora", "moments": 0.0}
RECIPE: dict[str, Any] = {"targets": ("query", "value", "projection", "mlp"), "rank": 64, "dropout": False}
PACKED: dict[str, Any] = {"network": LLAMA_3B, "batch": 2, "tokens": 4096, "accumulates": False}
CHECKPOINTED = {"compiled": True, "checkpointing": True}

LITGPT = [  # tutorials/resource-tables.md at 26857050fe, GB by torch.cuda.max_memory_allocated on an A100
    (21.30, Job(network=LLAMA_7B, batch=1, tokens=1304, **LORA)),
    (29.07, Job(network=LLAMA_7B, batch=2, tokens=1304, **LORA)),
    (14.14, Job(network=LLAMA_7B, batch=1, tokens=1304, quantised="nf4", **QLORA)),
    (22.55, Job(network=LLAMA_13B, batch=1, tokens=1304, quantised="nf4-dq", **QLORA)),
    (12.38, Job(network=LLAMA_7B, method="adapter", batch=1, tokens=1304, quantised="nf4-dq", repeats=False)),
    (25.51, Job(network=LLAMA_7B, method="adapter_v2", batch=1, tokens=1304, repeats=False)),
    (35.57, Job(network=LLAMA_13B, batch=1, tokens=1304, checkpointing=True, gpus=4, **LORA)),
    (4.26, Job(network=LLAMA_7B, method="inference", batch=1, tokens=100, quantised="nf4-dq")),
]
TORCHTUNE = [  # README.md at bd2a0fc7c3, GiB of "peak memory active" on an A100
    (60.0, Job(method="full", chunked=False, **PACKED)),
    (42.9, Job(method="full", compiled=True, **PACKED)),
    (24.9, Job(method="full", **CHECKPOINTED, **PACKED)),
    (23.1, Job(method="full", steps_in_backward=True, **CHECKPOINTED, **PACKED)),
    (8.5, Job(method="lora", offloads=True, **CHECKPOINTED, **RECIPE, **PACKED)),
    (4.6, Job(method="qlora", offloads=True, quantised="nf4-dq", **CHECKPOINTED, **RECIPE, **PACKED)),
]


@pytest.mark.parametrize(("measured", "job"), LITGPT)
def test_litgpts_peaks_are_met(measured: float, job: Job) -> None:
    assert sum(litgpt.peak(job).values()) / bench.GB == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(("measured", "job"), TORCHTUNE)
def test_torchtunes_peaks_are_met(measured: float, job: Job) -> None:
    assert sum(torchtune.peak(job).values()) / bench.GIB == pytest.approx(measured, rel=0.08)


@pytest.mark.skipif(not bench.FACTS.is_dir(), reason="../shared is not here")
def test_every_row_of_the_tables_is_within_what_was_asked() -> None:
    shapes = json.loads((bench.FACTS / "model_configs.json").read_text(encoding="utf-8"))
    paths = (bench.FACTS / "memory.csv", Path(bench.HERE) / "memory_elsewhere.csv")
    rows = [bench.compare(row, shapes) for path in paths for row in bench.read(path)]
    errors = sorted(abs(row.error) for row in rows if row.measured)
    assert statistics.median(errors) < 0.08
    assert errors[int(0.95 * len(errors))] < 0.2
    assert not [row.label for row in rows if not row.measured and row.fits]
