"""What a training costs beside memory: time, energy and disk, torch-free and in milliseconds; `plan` shows it."""

import math
from typing import TYPE_CHECKING

import msgspec

from toolbox import methods, parameters
from toolbox.device import Device, specification
from toolbox.models import ModelFacts
from toolbox.stages import GENERATED_AT_ONCE

if TYPE_CHECKING:
    from toolbox.memory import Load, Recipe

UTILISATION = {"cuda": 0.4, "mps": 0.3}
"""Share of the data sheet's arithmetic that training reaches: 0.2 to 0.5 is usual (Chowdhery et al. 2022,
arXiv:2204.02311, table 3)."""
UNCERTAIN = {"cuda": (0.5, 2.0), "mps": (0.5, 2.0), "cpu": (0.5, 2.0)}
"""The time's range as shares of it, where no run of this device has said better: `UTILISATION`'s usual range."""
CPU_CORE_FLOPS = 5e10
"""A core's arithmetic in training: an 18.9M Qwen2 with LoRA gave 1313 tokens/s on two cores (a trial of this
project)."""
QLORA_SLOWDOWN = 1.5
"""Time of nf4 against 16-bit weights: litgpt's table for Llama 2 7B, 3.68 against 2.36 min."""
BATCH_OVERHEAD_S = {"cuda": 0.1, "mps": 0.1, "cpu": 0.02}
"""A micro-batch's time beside its arithmetic, for starting a few thousand small operations."""
STORE_SHARE = 2.5
"""Bytes of encoded rows for a byte of the files they come from, at most: 2.4 measured with `bench/data.py` where a
token is 1.3 letters, less where it is more."""
KEPT_CHECKPOINTS = 2
"""The newest, and the one that is being written."""


class Costs(msgspec.Struct, kw_only=True, frozen=True):
    """What a training costs; `memory.Estimate` holds the same fields."""

    time_s: float
    """0 where the device's speed or the data are not known."""
    time_low_s: float
    time_high_s: float
    tokens_per_s: float
    energy_wh: float
    """0 where the device's power or the time is not known."""
    disk_parts_bytes: dict[str, int]


def predict(model: ModelFacts, recipe: "Recipe", device: Device, load: "Load", optimizer_bytes: float) -> Costs:
    """What training `model` by `recipe` on `device` costs; `optimizer_bytes`: of the optimizer's state."""
    time_s, tokens = _time(model, recipe, device, load)
    low, high = UNCERTAIN[device.kind]
    return Costs(
        time_s=time_s,
        time_low_s=low * time_s,
        time_high_s=high * time_s,
        tokens_per_s=tokens / time_s if time_s else 0.0,
        energy_wh=0.0,
        disk_parts_bytes=_disk_parts(model, recipe, load, optimizer_bytes),
    )


def _time(model: ModelFacts, recipe: "Recipe", device: Device, load: "Load") -> tuple[float, float]:
    """(seconds, tokens that are learnt from): arithmetic over speed.

    A weight and token take 2 operations forward, 2 for activations' gradients, 2 for its own (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1). Frozen weights have no gradient; checkpointing adds a forward pass.
    """
    speed = _speed(device, recipe.dtype)
    if not speed or not load.rows:
        return 0.0, 0.0
    training = recipe.training
    room = training.max_length * load.sequences
    rows, row_tokens = float(load.rows), min(load.mean_tokens, room)
    if training.packing:  # a pack stands in the place of a row
        rows, row_tokens = rows * row_tokens / room, float(room)
    batches = math.ceil(rows * training.num_train_epochs / training.per_device_train_batch_size)
    if training.max_steps >= 0:
        batches = training.max_steps * training.gradient_accumulation_steps
    tokens = batches * training.per_device_train_batch_size * row_tokens
    before = 2 * load.passes_before * rows * row_tokens
    passes = (6 if methods.trained_weights(recipe.method) else 4) + (2 if training.gradient_checkpointing else 0)
    slowdown = QLORA_SLOWDOWN if recipe.quantization != "none" else 1.0
    starts: float = batches
    if rollout := load.rollout:  # an answer is written, judged by the reference, and learnt from a few times
        answers = batches * training.per_device_train_batch_size * rollout.answers
        seen = answers * (row_tokens + rollout.tokens)
        tokens, before = seen * rollout.updates, 2 * (1 + rollout.reference) * seen
        written_at_once = GENERATED_AT_ONCE * training.per_device_train_batch_size
        starts = answers * (rollout.updates / training.per_device_train_batch_size + rollout.tokens / written_at_once)
    work = (passes * tokens + before) * model.parameters * slowdown
    return work / speed + starts * BATCH_OVERHEAD_S[device.kind], tokens


def _speed(device: Device, dtype: str) -> float:
    """Operations a second that training reaches on `device`; 0 where its data sheet is not known."""
    if device.kind == "cpu":
        return device.cores * CPU_CORE_FLOPS
    sheet = specification(device.name)
    if not sheet:
        return 0.0
    tflops = {"bfloat16": sheet.bf16_tflops, "float16": sheet.fp16_tflops}.get(dtype) or sheet.fp32_tflops
    return (tflops or 0.0) * 1e12 * UTILISATION[device.kind]


def _disk_parts(model: ModelFacts, recipe: "Recipe", load: "Load", optimizer_bytes: float) -> dict[str, int]:
    """What a run writes: checkpoints (weights and AdamW's moments), encoded rows, what comes out, and the merged model
    that usually follows an adapter."""
    trained = 4 * parameters.trained(model, recipe)
    full = methods.trained_weights(recipe.method)
    parts = {
        "checkpoints": KEPT_CHECKPOINTS * (trained + optimizer_bytes),
        "rows": STORE_SHARE * load.data_bytes,
        "result": model.weights_bytes if full else trained,
        "merged": 0 if full else model.weights_bytes,
    }
    return {name: math.ceil(value) for name, value in parts.items()}
