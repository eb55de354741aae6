"""The formats that a model is exported to: what each offers and needs, and what loads it again (`export`)."""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from toolbox import engines, files
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.i18n import N_, _
from toolbox.models import ModelFacts


class Type(msgspec.Struct, frozen=True):
    """One way to store weights. `bits` a weight, with its share of scales and zeros.

    `worse`: the largest factor by which perplexity may rise; beyond it the export is broken, not coarse.
    `interpreter`: the environment of its own that this type is written in, where the format needs none.
    """

    bits: float
    worse: float
    interpreter: str = ""


class Format(msgspec.Struct, kw_only=True, frozen=True):
    """What can be chosen with `--format`; its work is `toolbox/exporting/NAME.py`, or that of `work`."""

    name: str
    work: str = ""
    summary: str
    types: dict[str, Type]
    """By the names that the field has for them; the first is the default."""
    loaded_by: tuple[str, ...]
    """What loads it again, here and where it is used."""
    needs_cuda: bool = False
    modules: tuple[str, ...] = ()
    """What must be importable in this environment."""
    requirement: str = ""
    """What brings those, as pip is told."""
    interpreter: str = ""
    """The environment of its own below HOME/engines that it works in; empty: this one. Its lock for machines without
    an NVIDIA GPU has "-cpu" behind that name."""
    calibrated: bool = False
    """Whether it looks at rows to choose its numbers by."""
    rest_bits: float = 16
    """Bits of a weight of the embeddings and the head, which most formats leave alone."""
    adapter: str = ""
    """The module below exporting/ that writes an adapter alone; empty: the format has nothing for one."""
    adapter_types: tuple[str, ...] = ()
    """The types that an adapter alone is stored in; the first is the default."""
    adapter_only: bool = False
    """Whether it holds adapters and nothing else."""
    refuse: str = ""
    """`module:function` that raises InputError for a model that the format can't hold: takes ModelFacts and Home."""
    settings: str = ""
    """`module:function` that gives plan.settings for (model, type, rows to calibrate with)."""
    memory: str = ""
    """`module:function` that gives the RAM in bytes that writing takes for (name, model, dtype, plan.settings)."""

    def environments(self, kind: str, cuda: bool) -> list[str]:
        """The environments of its own that can write that type, the best for this machine first; empty: this one."""
        if own := self.types[kind].interpreter:
            return [own]
        if not self.interpreter:
            return []
        return [self.interpreter] if cuda else [f"{self.interpreter}-cpu", self.interpreter]

    def python(self, home: Home, kind: str, cuda: bool) -> Path | None:
        """The interpreter of such an environment; None where it is not installed, or needs none."""
        found = (engines.own_python(name, home) for name in self.environments(kind, cuda))
        return next(filter(None, found), None)

    def settings_for(self, model: ModelFacts, kind: str, rows: int) -> dict[str, Any]:
        """What goes into plan.settings."""
        return dict(_function(self.settings)(model, kind, rows)) if self.settings else {}

    def memory_bytes(self, model: ModelFacts, dtype: str, settings: dict[str, Any]) -> int:
        """The RAM that writing the weights takes; 0: no more than measuring them does."""
        return int(_function(self.memory)(self.name, model, dtype, settings)) if self.memory else 0

    def size_bytes(self, model: ModelFacts, kind: str) -> int:
        """About how large the export is."""
        matrices = 1 if model.tie_word_embeddings else 2
        rest = min(model.parameters, matrices * model.vocab_size * model.hidden_size)
        bits = self.types[kind].bits
        return int(((model.parameters - rest) * bits + rest * max(bits, self.rest_bits)) / 8)


_COMPRESSED = "toolbox.exports.compressed"
_COMPRESSES: dict[str, Any] = {
    "work": "compressed", "interpreter": "llmcompressor", "modules": ("compressed_tensors",),
    "requirement": "compressed-tensors", "memory": f"{_COMPRESSED}:memory_bytes",
    "loaded_by": ("transformers", "vLLM", "SGLang", "lmdeploy"),
}  # fmt: skip
"""What the formats that llmcompressor writes have in common."""
_K_QUANTS = {
    name: Type(bits, worse, interpreter="llamacpp")
    for name, bits, worse in (
        ("q6_k", 6.56, 1.1), ("q5_k_m", 5.7, 1.3), ("q5_k_s", 5.57, 1.3), ("q4_k_m", 4.89, 1.6), ("q4_k_s", 4.67, 1.6),
        ("q3_k_m", 4.0, 2.5), ("q2_k", 3.16, 5.0),
    )
}  # fmt: skip
"""What llama.cpp alone writes. `bits` of a whole Llama 3.1 8B (ggml-org/llama.cpp, tools/quantize/README.md)."""

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        Format(
            name="gguf", summary=N_("One file for llama.cpp, Ollama and LM Studio; made on any processor"),
            types={
                "q8_0": Type(8.5, 1.05), "q5_1": Type(6, 1.3), "q5_0": Type(5.5, 1.3), "q4_1": Type(5, 1.6),
                "q4_0": Type(4.5, 1.6), **_K_QUANTS, "bf16": Type(16, 1.02), "f16": Type(16, 1.02),
                "f32": Type(32, 1.005),
            },
            loaded_by=("llama.cpp", "transformers"), modules=("gguf",), requirement="gguf", rest_bits=8.5,
            refuse="toolbox.exports.gguf:refuse", adapter="gguf.adapter", adapter_types=("f32", "f16"),
        ),
        Format(
            name="peft", summary=N_("A LoRA adapter alone, as vLLM, SGLang and lmdeploy load it"),
            types={"f32": Type(32, 1.005), "bf16": Type(16, 1.02), "f16": Type(16, 1.02)},
            loaded_by=("peft",), adapter="peft", adapter_only=True, adapter_types=("f32", "bf16", "f16"),
        ),
        Format(
            name="bnb", summary=N_("bitsandbytes, for transformers and SGLang; needs no rows"),
            types={"nf4": Type(4.13, 1.6), "int8": Type(8.05, 1.05)},
            loaded_by=("transformers", "SGLang"), modules=("bitsandbytes",), requirement="bitsandbytes",
        ),
        Format(
            name="gptq", summary=N_("4 or 8 bits chosen by rows (GPTQ), for vLLM, SGLang and lmdeploy"),
            types={"w4a16": Type(4.13, 1.6), "w8a16": Type(8.13, 1.05), "w4a16_asym": Type(4.16, 1.6)},
            calibrated=True, refuse=f"{_COMPRESSED}:refuse_ungrouped", settings=f"{_COMPRESSED}:settings",
            **_COMPRESSES,
        ),
        Format(
            name="awq", summary=N_("4 bits, scaled by what rows activate (AWQ), for vLLM, SGLang and lmdeploy"),
            types={"w4a16": Type(4.13, 1.6), "w4a16_asym": Type(4.16, 1.6)},
            calibrated=True, refuse=f"{_COMPRESSED}:refuse_ungrouped", settings=f"{_COMPRESSED}:settings",
            **_COMPRESSES,
        ),
        Format(
            name="fp8", summary=N_("8-bit floats, for vLLM and SGLang on newer GPUs; needs no rows"),
            types={"fp8_dynamic": Type(8.05, 1.1)}, refuse=f"{_COMPRESSED}:refuse", **_COMPRESSES,
        ),
    )
}  # fmt: skip


def choose(name: str, kind: str, cuda: bool, home: Home) -> Format:
    """The format of that name. Raises InputError where this machine, or what is installed on it, can't make `kind`."""
    format = FORMATS[name]
    if format.needs_cuda and not cuda:
        raise InputError(
            _("An export to {name} needs an NVIDIA GPU, and none answers here.").format(name=name),
            _("Without one, export to gguf; or run this on a machine with a GPU: bash yichuidingyin.sh doctor"),
        )
    if absent := [module for module in format.modules if find_spec(module) is None]:
        raise InputError(
            _("An export to {name} needs {packages}, which is not installed.").format(
                name=name, packages=", ".join(absent)
            ),
            _("Install what it needs: {command}").format(
                command=f'{sys.executable} -m pip install "{format.requirement}"'
            ),
        )
    environments = format.environments(kind, cuda)
    if environments and format.python(home, kind, cuda) is None:
        raise InputError(
            _("An export to {name} works in an environment of its own, {environment}, which is not there.").format(
                name=f"{name} {kind}" if format.types[kind].interpreter else name, environment=environments[0]
            ),
            _("Make it: {command}").format(command=engines.preparing(environments[0], home)),
        )
    return format


def chosen_type(format: Format, wanted: str, alone: bool = False) -> str:
    """The type of that name, by default the format's first; `alone`: of an adapter by itself.

    Raises InputError naming those that there are.
    """
    names = format.adapter_types if alone else tuple(format.types)
    kind = wanted.lower() or next(iter(names), "")
    if not names:
        raise whole_only(format)
    if kind not in names:
        raise InputError(
            _("{format} has no type {name!r}.").format(format=format.name, name=wanted)
            if kind not in format.types
            else _("{format} has no type {name!r} for an adapter alone.").format(format=format.name, name=wanted),
            _("It has: {names}.").format(names=", ".join(names)),
        )
    return kind


def whole_only(format: Format) -> InputError:
    """What is said where an adapter alone is asked of a format for whole models."""
    return InputError(
        _("{format} holds whole models only.").format(format=format.name),
        _("Leave out --adapter-only: the adapter is merged first. Adapters alone: {names}.").format(
            names=", ".join(one.name for one in FORMATS.values() if one.adapter)
        ),
    )


def refuse_adapter(folder: Path) -> None:
    """Raise InputError where the adapter in `folder` can't be served alone, whatever the format."""
    config: dict[str, Any] = files.read_json(folder / "adapter_config.json") or {}
    plain = str(config.get("peft_type", "")).upper() == "LORA" and not config.get("use_dora")
    more = [name for name in ("modules_to_save", "bias", "lora_bias", "alora_invocation_tokens") if _says(config, name)]
    if not plain or more:
        raise InputError(
            _("{path} is more than LoRA ({what}), which engines don't load unmerged.").format(
                path=folder, what=", ".join(more) or config.get("peft_type", "?")
            ),
            _("Leave out --adapter-only: the adapter is merged first."),
        )


def _says(config: dict[str, Any], name: str) -> bool:
    return config.get(name) not in (None, False, "none", [], {})


def refuse(format: Format, model: ModelFacts, home: Home) -> None:
    """Raise InputError where the format can't hold the model, before anything is done."""
    if model.quantization:
        raise InputError(
            _("{model} is stored in {quantization} already, and would be rounded twice.").format(
                model=model.id, quantization=model.quantization
            ),
            _("Name the 16-bit model it was made from with --model."),
        )
    if format.refuse:
        _function(format.refuse)(model, home)


def _function(name: str) -> Callable[..., Any]:
    module, _colon, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found
