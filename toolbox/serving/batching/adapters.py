"""Several adapters on one model: rows of plain LoRA share a batch, rows of others take turns."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch

from toolbox import loading, methods
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.serving.batching.rows import Row

Part = tuple[Row, Any]
Kind = TypeVar("Kind")


class Adapters:
    """`base` with the adapters in `folders` by name; "" is none of them."""

    def __init__(self, base: Any, folders: dict[str, Path]) -> None:
        """Raises InputError for an adapter that changes more than modules, as prompts and LoReFT's interventions do."""
        self.base = base
        self._numbers = {name: f"adapter{number}" for number, name in enumerate(folders)}
        self._tuned: Any = None
        for name, folder in folders.items():
            self._load(self._numbers[name], folder)
        layers: list[Any] = _layers(base) if self._tuned else []
        self._side_by_side = bool(layers) and all(map(_is_plain, layers))
        self._ranges: list[tuple[str, int, int]] = []
        if self._side_by_side:
            for layer in layers:
                layer.forward = _Mixed(layer, self)
        elif self._tuned:
            self._tuned.disable_adapter_layers()

    def groups(self, parts: Sequence[tuple[Row, Kind]]) -> list[list[tuple[Row, Kind]]]:
        """`parts`, which lie in the order of their adapters, as batches that one pass can compute."""
        if self._side_by_side or not self._tuned:
            return [list(parts)]
        return [list(group) for _adapter, group in groupby(parts, key=lambda part: part[0].adapter)]

    @contextmanager
    def over(self, tokens: Sequence[tuple[str, int]]) -> Iterator[None]:
        """While entered, each (adapter's name, number of tokens) of a flattened batch is computed with that adapter."""
        if self._side_by_side:
            self._ranges = list(self._placed(tokens))
            yield
        elif self._tuned and tokens[0][0]:
            self._tuned.set_adapter(self._numbers[tokens[0][0]])
            self._tuned.enable_adapter_layers()
            try:
                yield
            finally:
                self._tuned.disable_adapter_layers()
        else:
            yield

    @property
    def may_pack(self) -> bool:
        """Whether no adapter reads its base's weights."""
        return self._side_by_side or not self._tuned

    @property
    def ranges(self) -> list[tuple[str, int, int]]:
        """(adapter's name in peft, first token, last) of the batch at hand."""
        return self._ranges

    def _placed(self, tokens: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int, int]]:
        first = 0
        for name, group in groupby(tokens, key=lambda part: part[0]):
            last = first + sum(count for _name, count in group)
            if name:
                yield self._numbers[name], first, last
            first = last

    def _load(self, name: str, folder: Path) -> None:
        method = methods.of_adapter(folder)
        if method and method.kind == "loreft":
            raise _not_servable(folder)
        self._tuned = loading.put_on(self.base, folder, lambda: self._with(name, folder), name)
        if self._tuned.peft_config[name].is_prompt_learning:
            raise _not_servable(folder)
        self._tuned.eval().requires_grad_(False)

    def _with(self, name: str, folder: Path) -> Any:
        """The base with that adapter beside those that it has."""
        from peft import PeftModel

        if self._tuned is None:
            return PeftModel.from_pretrained(self.base, folder, adapter_name=name, local_files_only=True)
        self._tuned.load_adapter(folder, adapter_name=name, local_files_only=True)
        return self._tuned


def _not_servable(folder: Path) -> InputError:
    return InputError(
        _("{path} is an adapter of a kind that this engine can't serve.").format(path=folder),
        _("Serve one that peft can merge, as lora, or evaluate it with: evaluate"),
    )


def _layers(base: Any) -> list[Any]:
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    return [module for module in base.modules() if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))]


def _is_plain(layer: Any) -> bool:
    """Whether peft computes nothing but a linear and LoRA's product."""
    from peft.tuners.lora import Linear

    return type(layer) is Linear and not layer.lora_variant and not getattr(layer, "fan_in_fan_out", False)


class _Mixed:
    """A layer's forward: x Wᵀ + scaling · x Aᵀ Bᵀ (arXiv:2106.09685, equation 3), each range of tokens with its own."""

    def __init__(self, layer: Any, adapters: Adapters) -> None:
        self._base, self._adapters = layer.base_layer, adapters
        self._products = {name: (layer.lora_A[name], layer.lora_B[name], layer.scaling[name]) for name in layer.lora_A}

    def __call__(self, x: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        out: torch.Tensor = self._base(x, *arguments, **options)
        for name, first, last in self._adapters.ranges:
            if name in self._products:
                a, b, scaling = self._products[name]
                out[..., first:last, :] += (b(a(x[..., first:last, :].to(a.weight.dtype))) * scaling).to(out.dtype)
        return out
