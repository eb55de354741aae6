"""Liger's kernels: wanted by name only, refused where they can't be, and kept only where the logits stay.

The kernels themselves run on CUDA alone; a stand-in of the package shows how it is called and what is done with it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from plans import CPU, demo_facts

from toolbox import datasets, embedded, loading, planning, wishes
from toolbox.config import Home
from toolbox.device import Device
from toolbox.errors import InputError
from toolbox.training import kernels
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

GPU = Device(kind="cuda", name="A10", memory_total_bytes=24 << 30, memory_free_bytes=23 << 30, bf16=True, cores=8)
SAMPLES = [Sample("x", number, ids, ids) for number, ids in enumerate([[5, 6, 7, 8], [9, 10, 11], [12, 13, 14, 15]])]


@pytest.mark.parametrize(("device", "reason"), [(CPU, "for CUDA GPUs"), (GPU, "not installed")])
def test_kernels_that_cannot_be_are_refused_in_the_plan(
    home: Path, device: Device, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "find_spec", lambda name: None)
    asked = wishes.Wishes(settings=["use_liger_kernel=true"])
    spec = datasets.resolve("demo-persona", Home(home))
    with pytest.raises(InputError, match=reason):
        planning.plan_finetune(demo_facts(), [spec], device, asked, Home(home))


def test_kernels_stand_in_the_plan_once_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "find_spec", lambda name: object())
    spec = datasets.resolve("demo-persona", Home(home))
    found = [
        planning.plan_finetune(demo_facts(), [spec], GPU, wishes.Wishes(settings=settings), Home(home)).training
        for settings in ([], ["use_liger_kernel=true"])
    ]
    assert [training.use_liger_kernel for training in found] == [False, True]


def test_fused_kernels_are_kept_only_where_logits_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loading.base_model(embedded.MODEL, "float32", "cpu")
    asked = stand_in(monkeypatch, lambda model: None)
    kernels.fuse(Forward(model, 0, "cpu", "float32"), SAMPLES)
    assert asked == [{**kernels.FUSED, "model": model}]
    stand_in(monkeypatch, lambda model: torch.nn.init.ones_(model.model.norm.weight))
    with pytest.raises(InputError, match="something else"):
        kernels.fuse(Forward(model, 0, "cpu", "float32"), SAMPLES)
    model.config.model_type = "unheard-of"
    with pytest.raises(InputError, match="unheard-of"):
        kernels.fuse(Forward(model, 0, "cpu", "float32"), SAMPLES)


def stand_in(monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """A package of liger-kernel's shape whose kernels do `change`; returns what it will be asked."""
    asked: list[dict[str, Any]] = []
    package, patch = ModuleType("liger_kernel.transformers"), ModuleType("liger_kernel.transformers.monkey_patch")

    def apply(**options: Any) -> None:
        asked.append(options)
        change(options["model"])

    patch.MODEL_TYPE_TO_APPLY_LIGER_FN = {"qwen3": apply}  # type: ignore[attr-defined]
    patch._apply_liger_kernel_to_instance = apply  # type: ignore[attr-defined]
    package.monkey_patch = patch  # type: ignore[attr-defined]
    for name, module in (("liger_kernel", ModuleType("liger_kernel")), (package.__name__, package)):
        monkeypatch.setitem(sys.modules, name, module)
    return asked
