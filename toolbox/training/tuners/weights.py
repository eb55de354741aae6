"""The model's own weights: all of them, the last layers, or a few random layers at a time (LISA)."""

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from toolbox import files, loading, methods
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.loading import decoder_layers
from toolbox.methods import FreezeConfig, LisaConfig
from toolbox.plan import FinetunePlan
from toolbox.runs import Run
from toolbox.training.tuners import ready, restore_exactly, save_exactly

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class WeightsTuner:
    """Weights in float32 with the plan's dtype for the arithmetic: small updates would vanish in bfloat16."""

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan
        self._names: list[str] = []
        """The weights that may be trained at some step, which checkpoints keep."""

    def load(self, device: str) -> "PreTrainedModel":
        model = loading.base_model(self._plan.model.path, "float32", device)
        self.choose(model)
        self._names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        return ready(model, self._plan)

    def choose(self, model: "PreTrainedModel") -> None:
        """Let the weights that are to be trained have a gradient, and no others; a plugin's tuner has its own here."""
        model.requires_grad_(self._plan.method not in ("freeze", "lisa"))
        if self._plan.method == "freeze":
            _thaw(model, methods.own(self._plan, "FreezeConfig"))
        if self._plan.method == "lisa":
            for module in (*decoder_layers(model), *_always(model)):
                module.requires_grad_(True)

    def follow(self, model: "PreTrainedModel", optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
        if self._plan.method == "lisa":
            Lisa(model, optimizer, methods.own(self._plan, "LisaConfig"), self._plan.seed).follow(step)

    def save(self, model: "PreTrainedModel", folder: Path) -> None:
        save_exactly(self._kept(model), folder)

    def restore(self, model: "PreTrainedModel", folder: Path) -> None:
        restore_exactly(self._kept(model), folder)

    def _kept(self, model: "PreTrainedModel") -> dict[str, torch.Tensor]:
        weights = dict(model.named_parameters())
        return {name: weights[name] for name in self._names}

    def export(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", run: Run) -> dict[str, str]:
        destination = run.path / "model"
        if not destination.exists():
            model.to(getattr(torch, self._plan.model.dtype))
            with files.whole_folder(destination) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
        return {"adapter": "", "model": str(destination)}


class Lisa:
    """Layerwise importance sampled AdamW (arXiv:2403.17919, algorithm 1).

    The layers of a step are a function of the seed and the step's number. A layer that is put to rest loses its
    moments, as they are what LISA saves; drawn again, it begins anew.
    """

    def __init__(
        self, model: "PreTrainedModel", optimizer: torch.optim.Optimizer, config: LisaConfig, seed: int
    ) -> None:
        self._layers, self._optimizer = decoder_layers(model), optimizer
        self._config, self._seed = config, seed

    def follow(self, step: int) -> None:
        """Train the layers of `step` (from 0), and after each optimizer step those of the next."""
        done = step

        def after(*_: Any) -> None:
            nonlocal done
            done += 1
            if done % self._config.interval_steps == 0:
                self._train_only(self.drawn(done))

        self._train_only(self.drawn(step))
        self._optimizer.register_step_post_hook(after)

    def drawn(self, step: int) -> set[int]:
        """The layers that are trained at `step`."""
        interval, count = step // self._config.interval_steps, len(self._layers)
        return set(random.Random(f"{self._seed}/{interval}").sample(range(count), min(self._config.layers, count)))

    def _train_only(self, chosen: set[int]) -> None:
        for index, layer in enumerate(self._layers):
            layer.requires_grad_(index in chosen)
            if index not in chosen:
                for weight in layer.parameters():
                    self._optimizer.state.pop(weight, None)


def _always(model: Any) -> list[torch.nn.Module]:
    """What LISA trains at every step."""
    return [module for module in (model.get_input_embeddings(), model.get_output_embeddings()) if module is not None]


def _thaw(model: Any, config: FreezeConfig) -> None:
    """Let the layers and modules of `config` be trained. Raises InputError where one is not there, or none is."""
    layers = decoder_layers(model)
    chosen = layers[-config.layers :] if config.layers > 0 else layers[: -config.layers]
    named = dict(model.named_modules())
    modules = [next((named[name] for name in named if name.endswith(wanted)), None) for wanted in config.modules]
    if None in modules or not (modules or chosen):
        raise InputError(
            _("FreezeConfig leaves nothing to train, or names a module that is not there."),
            _("Set FreezeConfig.layers to 1 or more, or name modules as lm_head."),
        )
    for module in (*chosen, *filter(None, modules)):
        module.requires_grad_(True)
