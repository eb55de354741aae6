"""The score head of reward models: beside the language head, trained with the tuner's weights, saved as others read it.

`finetune --stage rm` makes one. What is saved loads as transformers' `…ForSequenceClassification` with one label.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as to_bytes

from toolbox import files, methods
from toolbox.plan import FinetunePlan
from toolbox.runs import Run

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "score.safetensors"
IN_ADAPTER = "base_model.model.score.weight"
"""peft's name of the head that `modules_to_save` adds to a model for sequence classification."""


def extend(model: "PreTrainedModel") -> None:
    """Give `model` a head in float32, from its hidden state to one number, without a bias."""
    base, config = _base(model), model.config.get_text_config()
    head = torch.nn.Linear(config.hidden_size, 1, bias=False)
    torch.nn.init.normal_(head.weight, std=getattr(config, "initializer_range", 0.02))
    base.score = head.to(model.device)


def head_of(model: "PreTrainedModel") -> torch.nn.Linear | None:
    """The head that `extend` gave to `model`, if it did."""
    return getattr(_base(model), "score", None)


@contextmanager
def left_out(model: "PreTrainedModel") -> Iterator[None]:
    """Without the head, where it is only for the training: engines refuse a weight that they have no place for."""
    base = _base(model)
    head = base.score
    del base.score
    try:
        yield
    finally:
        base.score = head


def save(model: "PreTrainedModel", folder: Path) -> None:
    if head := head_of(model):
        save_file({"score.weight": head.weight.detach().contiguous()}, folder / FILE)


def restore(model: "PreTrainedModel", folder: Path) -> None:
    if head := head_of(model):
        with torch.no_grad():
            head.weight.copy_(load_file(folder / FILE)["score.weight"])


def export(model: "PreTrainedModel", run: Run, plan: FinetunePlan) -> dict[str, str]:
    """Make what the tuner exported a model for sequence classification; done again, it changes nothing."""
    if methods.trained_weights(plan.method):
        _name_model(run.path / "model", model)
    else:
        _complete_adapter(run.adapter, model)
    return {"kind": "reward_model"}


def _complete_adapter(folder: Path, model: "PreTrainedModel") -> None:
    head = head_of(model)
    weights = load_file(folder / "adapter_model.safetensors")
    if head and IN_ADAPTER not in weights:
        weights[IN_ADAPTER] = head.weight.detach().cpu().contiguous()
        files.write_bytes(folder / "adapter_model.safetensors", to_bytes(weights, {"format": "pt"}))
    _change(folder / "adapter_config.json", {"task_type": "SEQ_CLS", "modules_to_save": ["score"]})


def _name_model(folder: Path, model: "PreTrainedModel") -> None:
    """transformers finds the head by the architecture's name; a language head in the files is left unread."""
    architecture = type(_base(model)).__name__.replace("ForCausalLM", "ForSequenceClassification")
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    _change(folder / "config.json", {"architectures": [architecture], **labels})


def _change(path: Path, values: dict[str, Any]) -> None:
    config = files.read_json(path)
    files.write_json(path, {**(config if isinstance(config, dict) else {}), **values})


def _base(model: Any) -> Any:
    return getattr(model, "get_base_model", lambda: model)()
