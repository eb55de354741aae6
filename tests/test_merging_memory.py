"""Merging holds a few tensors in memory, never the model: measured in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_merging_models import QWEN, based
from test_merging_tuners import made

from toolbox import model_files

CHILD = """
import sys
from pathlib import Path
from test_merging_tuners import plan_of
from toolbox import loading, models
from toolbox.merging import layers, weights, whole

def mib(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))

base, adapter, out, way = sys.argv[1:]
plan = plan_of(Path(adapter), model=models.read(Path(base), id="base", source="local"))
loading.with_adapter(loading.base_model(Path(base), "float32", "meta"), Path(adapter))
if way == "whole":
    weights.whole_needed = lambda config: True
Path(out).mkdir()
Path("/proc/self/clear_refs").write_text("5")
before = mib("VmRSS:")
weights.merge(plan, Path(out), lambda step, steps: None)
print(mib("VmHWM:") - before)
"""
SHAPE = {**QWEN, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 6, "head_dim": 256}
FEW = 10
"""Times the largest tensor: read, kept, converted, in peft's layer, its update, that scaled, and DoRA's norms."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return based(tmp_path_factory.mktemp("large") / "base", "Qwen3Config", shard="100MB", **SHAPE)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for a peak")
@pytest.mark.parametrize(("way", "lora"), [("plain", {}), ("layers", {"use_dora": True}), ("whole", {})])
def test_a_merge_takes_a_few_times_its_largest_tensor(
    way: str, lora: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """Merged whole, as peft does it, it takes more: what is measured here does see a model."""
    settings = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    adapter = made(tmp_path / "adapter", "LoraConfig", settings, base)
    words = [sys.executable, "-P", "-c", CHILD, str(base), str(adapter), str(tmp_path / "out"), way]
    tests = Path(__file__).parent
    environ = os.environ | {"PYTHONPATH": f"{tests}:{tests.parent}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rise, sizes = float(done.stdout.split()[-1]), _sizes(base)
    assert sum(sizes) > 2 * FEW * max(sizes)
    assert (rise < FEW * max(sizes)) == (way != "whole")


def _sizes(base: Path) -> list[float]:
    """MiB of each tensor."""
    tensors = model_files.tensors(base).values()
    return [(tensor.data_offsets[1] - tensor.data_offsets[0]) / 2**20 for tensor in tensors]
