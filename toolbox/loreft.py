"""LoReFT interventions (arXiv:2404.03592): hidden states edited within a low-rank subspace; `--method loreft`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch
from safetensors.torch import load_file, save_file
from torch.nn.utils.parametrizations import orthogonal

from toolbox import files
from toolbox.errors import CorruptError, InputError
from toolbox.i18n import _
from toolbox.loading import decoder_layers
from toolbox.methods import LOREFT, LoreftConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
NAME = "loreft"
"""The module's name within the model."""
SCORE = "base_model.model.score.weight"
"""The head of a reward model, as peft names it."""


class Intervention(torch.nn.Module):
    """h + Rᵀ(Wh + b − Rh), R with orthonormal rows (equation 2), in float32.

    It begins as the identity, W = R and b = 0, so that training begins from the base model; pyreft draws W.
    """

    def __init__(self, hidden: int, r: int, fixed: bool = False) -> None:
        super().__init__()
        self.rotation = torch.nn.Linear(hidden, r, bias=False)
        self.source = torch.nn.Linear(hidden, r)
        torch.nn.init.orthogonal_(self.rotation.weight)
        if not fixed:
            orthogonal(self.rotation, orthogonal_map="householder", use_trivialization=False)
        with torch.no_grad():
            self.source.weight.copy_(self.rotation.weight)
            self.source.bias.zero_()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """states [..., hidden], as they came, edited; in their own dtype."""
        with torch.autocast(states.device.type, enabled=False):
            exact, rotation = states.float(), self.rotation.weight
            edit = (self.source(exact) - exact @ rotation.T) @ rotation
            return (exact + edit).to(states.dtype)


class Interventions(torch.nn.Module):
    """All interventions of a model, one a layer, put on their layers' outputs."""

    def __init__(self, model: Any, config: LoreftConfig, fixed: bool = False) -> None:
        super().__init__()
        layers, text = decoder_layers(model), model.config.get_text_config()
        chosen = config.layers or list(range(len(layers)))
        if not set(chosen) <= set(range(len(layers))) or config.r > text.hidden_size:
            raise InputError(
                _("LoreftConfig names layers or a rank that the model does not have."),
                _("It has layers 0 to {last}; r is at most {hidden}.").format(
                    last=len(layers) - 1, hidden=text.hidden_size
                ),
            )
        self.config, self.enabled = config, True
        self.layers = torch.nn.ModuleDict({str(i): Intervention(text.hidden_size, config.r, fixed) for i in chosen})
        for index in chosen:
            layers[index].register_forward_hook(self._hook(self.layers[str(index)]), with_kwargs=True)

    def _hook(self, intervention: torch.nn.Module) -> Any:
        def edited(layer: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            if not self.enabled:
                return output
            states = output[0] if isinstance(output, tuple) else output
            changed = intervention(states)
            if self.config.positions:
                first = kwargs["position_ids"] < self.config.positions
                changed = torch.where(first[..., None], changed, states)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return edited


def attach(model: Any, config: LoreftConfig, fixed: bool = False) -> Interventions:
    """Put interventions on `model`; `fixed`: R is not trained any more, and is kept as it is."""
    interventions = Interventions(model, config, fixed).to(model.device)
    setattr(model, NAME, interventions)

    @contextmanager
    def disable_adapter() -> Iterator[None]:
        interventions.enabled = False
        try:
            yield
        finally:
            interventions.enabled = True

    model.disable_adapter = disable_adapter  # as a PeftModel has it
    return interventions


def save(model: Any, folder: Path, base: Path) -> None:
    """Write R, W and b of each layer, and the configuration, in the files that adapters have."""
    interventions: Any = getattr(model, NAME)
    tensors = {}
    for index, one in interventions.layers.items():
        tensors[f"layers.{index}.rotation.weight"] = one.rotation.weight
        tensors[f"layers.{index}.source.weight"] = one.source.weight
        tensors[f"layers.{index}.source.bias"] = one.source.bias
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    described = {"peft_type": LOREFT, "base_model_name_or_path": str(base), "task_type": "CAUSAL_LM"}
    files.write_json(folder / CONFIG, {**described, **msgspec.to_builtins(interventions.config)})


def load(model: "PreTrainedModel", folder: Path) -> "PreTrainedModel":
    """`model` with the interventions that lie in `folder`. Raises CorruptError where they can't be read."""
    try:
        described = json.loads((folder / CONFIG).read_text("utf-8"))
        config = msgspec.convert({name: described[name] for name in LoreftConfig.__struct_fields__}, LoreftConfig)
        tensors = load_file(folder / WEIGHTS)
        if SCORE in tensors:  # of a reward model
            model.score.load_state_dict({"weight": tensors.pop(SCORE)})  # type: ignore[operator, union-attr]
        attach(model, config, fixed=True).load_state_dict(tensors)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CorruptError(
            _("The interventions in {path} can't be read: {reason}.").format(path=folder, reason=error),
            _("Train them again."),
        ) from error
    return model
