"""A LoRA adapter as GGUF, which llama.cpp puts onto a model of its own (`--lora`); tried there (`export`).

Keys and names: ggml-org/llama.cpp, `src/llama-adapter.cpp`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf
import torch
from gguf import GGUFWriter
from peft import LoraConfig, PeftConfig

from toolbox import engines
from toolbox.config import find_home
from toolbox.errors import InputError
from toolbox.exporting import gguf as whole
from toolbox.exporting.checking import Questions, Said
from toolbox.exporting.gguf import llamacpp, settings, tensors
from toolbox.exporting.peft import pairs
from toolbox.exports.gguf import ARCHITECTURES
from toolbox.i18n import _
from toolbox.plan import ExportPlan

if TYPE_CHECKING:
    from toolbox.exporting import Step


def write(plan: ExportPlan, source: Path, folder: Path, step: "Step") -> list[str]:
    """Write NAME-lora.gguf into `folder`, and the base it is tried on into a hidden folder there."""
    assert plan.adapter
    if engines.own_python("llamacpp", find_home()) is None:
        raise InputError(
            _("An adapter as GGUF could be loaded again by llama.cpp only, which is not installed here."),
            _("Install what serves it: {command}").format(command=engines.preparing("llamacpp", find_home())),
        )
    config, architecture = settings.config_of(source), ARCHITECTURES[plan.model.model_type]
    made = PeftConfig.from_pretrained(str(plan.adapter))
    assert isinstance(made, LoraConfig)
    writer = GGUFWriter(folder / f"{plan.output.name.removesuffix('-adapter-gguf')}-lora.gguf", architecture.name)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 1.0)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for module, pair in pairs(plan.adapter, made).items():
        name = _place(module, config, architecture.name)
        heads = tensors.heads(f"{module}.weight", config) if architecture.permuted else 0
        b = tensors.interleaved(pair.b, heads) if heads else pair.b
        # llama.cpp multiplies by alpha / r, with one alpha for all: here each module's own factor is in B.
        writer.add_tensor(f"{name}.lora_a", _numbers(pair.a, plan.type))
        writer.add_tensor(f"{name}.lora_b", _numbers(b * (pair.scaling * pair.a.shape[0]), plan.type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = folder / ".base"
    base.mkdir()
    return whole.write_model(plan, source, base / "base.gguf", whole.BASE.get(plan.model.dtype, "f32"), step)


def _numbers(tensor: torch.Tensor, kind: str) -> Any:
    return tensor.to(torch.float16 if kind == "f16" else torch.float32).contiguous().numpy()


def _place(module: str, config: Any, architecture: str) -> str:
    """What GGUF calls a module's weight. Raises InputError where it has none."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    name = gguf.get_tensor_name_map(arch, config.num_hidden_layers).get_name(f"{module}.weight", (".weight",))
    if name is None:
        raise InputError(
            _("The model's {name} has no place in GGUF's {architecture}.").format(
                name=module, architecture=architecture
            ),
            _("Leave out --adapter-only: the adapter is merged first."),
        )
    return name


def ask(plan: ExportPlan, source: Path, folder: Path, questions: Questions) -> dict[str, Said]:
    """What llama.cpp says with the adapter on the base."""
    python = engines.own_python("llamacpp", find_home())
    lora = next(folder.glob("*.gguf"))
    return {"llama.cpp": llamacpp.ask(python, folder / ".base" / "base.gguf", questions, lora)} if python else {}
