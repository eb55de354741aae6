"""GGUF, for llama.cpp and what is built on it: one file with weights, tokenizer and chat template (`export`)."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import gguf
import numpy as np
import torch
from gguf import GGUFWriter, LlamaFileType
from transformers import AutoModelForCausalLM, LlamaConfig

from toolbox import engines, exports, loading, templates
from toolbox.config import find_home
from toolbox.exporting import checking
from toolbox.exporting.checking import Questions, Said
from toolbox.exporting.gguf import llamacpp, settings, tensors, vocabulary
from toolbox.exports.gguf import ARCHITECTURES
from toolbox.plan import ExportPlan

if TYPE_CHECKING:
    from toolbox.exporting import Step

BESIDE = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    templates.FILE,
)  # fmt: skip
"""What lies beside the file, so that `serve` knows of the model what it knows of any: llama.cpp needs none of it."""
BASE = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
"""In which type a model is written that nothing is to be lost of."""
FILE_TYPES = {"f32": "ALL_F32"}
"""`general.file_type` of the types whose name is not MOSTLY_TYPE."""


def write(plan: ExportPlan, source: Path, folder: Path, step: "Step") -> list[str]:
    """Write NAME-TYPE.gguf into `folder`, a tensor at a time. Returns what llama.cpp does otherwise."""
    path = folder / f"{plan.output.name.removesuffix('-' + plan.type)}-{plan.type.upper()}.gguf"
    if exports.FORMATS[plan.format].types[plan.type].interpreter:
        notes = _write_quantised(plan, source, path, step)
    else:
        notes = write_model(plan, source, path, plan.type, step)
    for name in BESIDE:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    return notes


def _write_quantised(plan: ExportPlan, source: Path, path: Path, step: "Step") -> list[str]:
    """Write it in the model's own precision into a hidden folder first, for llama.cpp to quantise."""
    scratch = path.parent / ".whole"
    scratch.mkdir()
    notes = write_model(plan, source, scratch / "whole.gguf", BASE[plan.dtype], step)
    notes += llamacpp.quantise(plan, scratch / "whole.gguf", path, step)
    shutil.rmtree(scratch)
    return notes


def write_model(plan: ExportPlan, source: Path, path: Path, kind: str, step: "Step") -> list[str]:
    """Write the model in `source` to `path`, in the type `kind`."""
    config = settings.config_of(source)
    writer = GGUFWriter(path, ARCHITECTURES[plan.model.model_type].name)
    try:
        writer.add_type("model")
        writer.add_name(plan.run or Path(plan.model.id).name)
        writer.add_file_type(LlamaFileType[FILE_TYPES.get(kind, f"MOSTLY_{kind.upper()}")])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        notes = settings.add(writer, config)
        notes += vocabulary.add(writer, source, config.vocab_size, checking.questions(plan, source).texts)
        store = tensors.Store(source)
        made = tensors.targets(store, config, ARCHITECTURES[plan.model.model_type], kind)
        _write_tensors(writer, store, made, tensors.rope(config), step)
    finally:
        writer.close()
    return notes


def _write_tensors(
    writer: GGUFWriter, store: tensors.Store, made: list[tensors.Target], small: dict[str, np.ndarray], step: "Step"
) -> None:
    """First what there will be, then the numbers, as they are read."""
    for name, values in small.items():
        writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
    for target in made:
        writer.add_tensor_info(target.name, target.shape, np.dtype(np.float32), target.nbytes, raw_dtype=target.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for values in small.values():
        values.tofile(file)
        writer.write_padding(file, values.nbytes)
    for done, target in enumerate(made):
        step(done, len(made))
        for chunk in tensors.chunks(store, target):
            chunk.tofile(file)
        writer.write_padding(file, target.nbytes)
    step(len(made), len(made))


def ask(plan: ExportPlan, source: Path, folder: Path, questions: Questions) -> dict[str, Said]:
    """What llama.cpp says where it is installed, and transformers, dequantising, where it knows the architecture."""
    path = next(folder.glob("*.gguf"))
    said = {}
    if python := engines.own_python("llamacpp", find_home()):
        said["llama.cpp"] = llamacpp.ask(python, path, questions)
    if ARCHITECTURES[plan.model.model_type].in_transformers:
        said["transformers"] = _ask_transformers(plan, source, path, questions)
    return said


def _ask_transformers(plan: ExportPlan, source: Path, path: Path, questions: Questions) -> Said:
    """What transformers makes of the file's weights, by its own table of names, with its own ways back.

    The settings are the source's: it reads few of GGUF's (5.23, integrations/ggml.py).
    """
    config = settings.config_of(source)
    if ARCHITECTURES[plan.model.model_type].name == "llama":
        values = {name: value for name, value in config.to_dict().items() if name not in ("model_type", "layer_types")}
        config = LlamaConfig(**values)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=getattr(torch, checking.dtype(plan)),
        device_map=loading.torch_device(plan.device.kind, plan.device.index), **loading.SAFE,
    )  # fmt: skip
    return checking.ask_model(model, loading.tokenizer(source), questions)
