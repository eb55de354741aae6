"""The base's tensors as the adapter knew them in training: in its precision, and rounded to 4 bits where it was so."""

from collections.abc import Set
from pathlib import Path
from typing import Any

import torch

from toolbox import files, model_files
from toolbox.errors import CorruptError
from toolbox.i18n import _
from toolbox.merging.tensors import Entry, Reader
from toolbox.plan import MergePlan

INDEX = "model.safetensors.index.json"


class Base:
    """All tensors of the base, by the names they have in its files. To be closed."""

    def __init__(self, plan: MergePlan) -> None:
        self.readers: dict[str, Reader] = {}
        try:
            for name in shards_of(plan.model.path):
                self.readers[name] = Reader(plan.model.path / name)
        except BaseException:
            self.close()
            raise
        self._main, self._dtype = getattr(torch, plan.model.dtype), getattr(torch, plan.dtype)
        self.parameter_of: dict[str, str] = {}
        """The parameter that a tensor is in the loaded model, where that has another name."""
        self._rounded = _rounded(plan) if plan.dequantizes else {}
        self._plan = plan

    def close(self) -> None:
        for reader in self.readers.values():
            reader.close()

    @property
    def entries(self) -> dict[str, Entry]:
        """What each tensor is as the adapter knew it."""
        return {
            name: Entry(self._precision(entry.dtype), entry.shape)
            for reader in self.readers.values()
            for name, entry in reader.entries.items()
        }

    def _precision(self, dtype: torch.dtype) -> torch.dtype:
        """What a base stores in float32 beside a coarser rest, as the bias of a router, it needs so."""
        needed = dtype == torch.float32 != self._main or not dtype.is_floating_point
        return dtype if needed or dtype.itemsize == 1 else self._dtype

    def get(self, name: str) -> torch.Tensor:
        """A tensor as the adapter knew it, in memory of its own."""
        reader = next(reader for reader in self.readers.values() if name in reader.entries)
        return self.known(name, reader.get(name))

    def known(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor from the files, as the adapter knew it: itself where nothing was done to it."""
        tensor = tensor.to(self._precision(tensor.dtype))
        name = self.parameter_of.get(name, name)
        if name not in self._rounded:
            return tensor
        turned, settings = self._rounded[name], self._plan.BitsAndBytesConfig
        return through_4_bits(tensor.T, settings).T if turned else through_4_bits(tensor, settings)

    def lacking(self, names: Set[str]) -> CorruptError:
        """What is said of a base that has no numbers for some of its model's tensors."""
        return CorruptError(
            _("{path} has nothing for {count} of its model's tensors, first {name}.").format(
                path=self._plan.model.path, count=len(names), name=min(names)
            ),
            _("Fetch the model again."),
        )

    def write_config(self, folder: Path, untied: bool, tokens: int) -> None:
        """config.json, with what differs after a merge: the type of the weights, the number of tokens, ties."""
        config = model_files.json_object(self._plan.model.path / "config.json")
        for key in ("quantization_config", "torch_dtype", "_name_or_path"):
            config.pop(key, None)
        config["dtype"] = self._plan.dtype
        if tokens and "vocab_size" in _text(config):
            _text(config)["vocab_size"] = tokens
        files.write_json(folder / "config.json", config, mode=0o644)
        if untied:
            self.untie(folder)

    @property
    def tied(self) -> bool:
        """Whether config.json says that head and embeddings are one, or only one of them is stored."""
        return self._plan.model.tie_word_embeddings

    def untie(self, folder: Path) -> None:
        """Have the config.json in `folder` say that head and embeddings are two."""
        config = model_files.json_object(folder / "config.json")
        config["tie_word_embeddings"] = _text(config)["tie_word_embeddings"] = False
        files.write_json(folder / "config.json", config, mode=0o644)


def _text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that is the language model's."""
    return config["text_config"] if isinstance(config.get("text_config"), dict) else config


def shards_of(folder: Path) -> dict[str, list[str]]:
    """The safetensors files of the model in `folder`, and the tensors in each."""
    index = folder / INDEX
    named = model_files.json_object(index)["weight_map"].values() if index.is_file() else ["model.safetensors"]
    return {name: list(model_files.header(folder / name)) for name in sorted(set(named))}


def _rounded(plan: MergePlan) -> dict[str, bool]:
    """The parameters that are in 4 bits when the base is loaded so, as transformers decides, and whether turned before.

    It turns the weights of GPT-2's Conv1D, which are in × out.
    """
    from toolbox import loading

    model = loading.base_model(plan.model.path, plan.dtype, "meta", plan.BitsAndBytesConfig)
    return {
        f"{name}.weight": getattr(getattr(part, "source_cls", None), "__name__", "") == "Conv1D"
        for name, part in model.named_modules()
        if type(part).__name__ == "Linear4bit"
    }


def through_4_bits(weight: torch.Tensor, settings: dict[str, Any]) -> torch.Tensor:
    """`weight` rounded to 4 bits and back (QLoRA, arXiv:2305.14314, equations 3 to 6), as training's base has it."""
    from bitsandbytes.nn import Params4bit
    from peft.utils.integrations import dequantize_bnb_weight
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(**settings)
    rounded: Any = Params4bit(
        weight.contiguous(), requires_grad=False, compress_statistics=config.bnb_4bit_use_double_quant,
        quant_type=config.bnb_4bit_quant_type, quant_storage=config.bnb_4bit_quant_storage,
    )  # fmt: skip
    dequantised: torch.Tensor = dequantize_bnb_weight(rounded.to("cpu"))
    return dequantised.to(weight.dtype)
