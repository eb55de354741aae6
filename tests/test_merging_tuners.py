"""Merging whatever peft makes, a layer at a time: bit for bit what it leaves when it merges the whole model."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from plans import CPU, demo_facts
from safetensors.torch import load_file

from toolbox import embedded, loading, methods
from toolbox.merging import weights
from toolbox.plan import MergePlan

BY_PEFT = [
    method.name for method in methods.METHODS if method.kind == "adapter" and not method.unmergeable and method.block
]


def made(
    folder: Path,
    block: str,
    settings: dict[str, Any],
    base: Path = embedded.MODEL,
    dtype: str = "float32",
    more: int = 0,
) -> Path:
    """An adapter on `base`, which got `more` tokens before, whose every weight was moved, as if trained."""
    model = loading.base_model(base, dtype, "cpu")
    if more:
        model.resize_token_embeddings(model.get_input_embeddings().weight.shape[0] + more, mean_resizing=False)
    torch.manual_seed(1)
    tuned: Any = peft.get_peft_model(model, getattr(peft, block)(**settings))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    tuned.save_pretrained(folder)
    return folder


def merged(plan: MergePlan, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir()
    weights.merge(plan, folder, lambda step, steps: None)
    return tensors(folder)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def by_peft(
    adapter: Path, folder: Path, base: Path = embedded.MODEL, dtype: str = "float32"
) -> dict[str, torch.Tensor]:
    model = loading.with_adapter(loading.base_model(base, dtype, "cpu"), adapter)
    model.merge_and_unload().save_pretrained(folder)  # type: ignore[operator]
    return tensors(folder)


def plan_of(adapter: Path, **changes: Any) -> MergePlan:
    fields = {
        "entry": "",
        "model": demo_facts(),
        "device": CPU,
        "adapter": adapter,
        "output": adapter,
        "dtype": "float32",
    }
    return MergePlan(**fields | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_PEFT)
def test_every_tuner(name: str, tmp_path: Path) -> None:
    method = methods.find(name)
    settings = dict(method.settings)
    if method.block == "LoraConfig":
        settings = {**methods.ALL, **settings}
    if name == "adalora":
        settings["total_step"] = 10
    adapter = made(tmp_path / "adapter", method.block, settings)
    expected = by_peft(adapter, tmp_path / "whole")
    found = merged(plan_of(adapter), tmp_path / "out")
    assert found.keys() == expected.keys()
    wrong = [key for key in found if not torch.equal(found[key], expected[key])]
    assert not wrong
