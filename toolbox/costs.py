"""What a training costs beside memory: time, energy and disk, torch-free and in milliseconds; `plan` shows it."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from toolbox import methods, parameters
from toolbox.datasheets import specification
from toolbox.device import Device
from toolbox.models import ModelFacts
from toolbox.stages import GENERATED_AT_ONCE

if TYPE_CHECKING:
    from toolbox.memory import Load, Recipe

WIDTH = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_READ = 0.5
"""Bytes of a weight in nf4."""
UTILISATION = {"cuda": 0.5, "mps": 0.3}
"""Share of the data sheet's arithmetic that matrix products reach. cuda: torchtune's README, Llama 3.2 3B, all weights,
rows of 4096 tokens on an A100: 7,075 tokens/s packed and uncompiled, 9,174 compiled, are 0.44 and 0.56 of it with all
that is no product. mps: a guess within the usual 0.2 to 0.5 (Chowdhery et al. 2022, arXiv:2204.02311, table 3)."""
BANDWIDTH_UTILISATION = 0.8
"""Share of the data sheet's bandwidth that copying kernels reach, usually."""
DEQUANTISED = 0.27
"""The same, of bitsandbytes' unpacking of nf4: litgpt's table, Llama 2 7B on an A100 of 1555 GB/s, 3.68 against 2.36
minutes for 1000 micro-batches: 79 ms for two passes over 6.6e9 weights, 2.5 bytes each."""
ELEMENTWISE_BYTES = 34
"""Bytes a token, layer and hidden feature that are kept in 16 bits, and so are written and read, forward and backward,
by what is no product (Korthikanti et al. 2022, arXiv:2205.05198, equation 2, without the scores)."""
TRAFFIC = 4
LOGIT_BYTES = 16
"""A logit in 16 bits, its copy, log-softmax and gradient in float32: each written and read."""
LAUNCH_S = {"cuda": 0.0042, "mps": 0.0042, "cpu": 0.001}
"""A micro-batch's time a layer that is spent starting small operations. cuda: litgpt's table, where batches of 1 and
4 rows take the same: 97 ms for 24 layers, 74 for 16, 142 for 32. A GPU computes meanwhile, so the longer of both
counts; a processor does not. cpu: 20 ms a micro-batch, measured on the embedded model."""
UNCERTAIN = {"cuda": (0.5, 2.0), "mps": (0.5, 2.0), "cpu": (0.4, 2.5)}
"""The time's range as shares of it, where no run of this device has said better. cuda, mps: the usual range of
utilisation. cpu: a guess, of a machine that does nothing else."""
CPU_CORE_FLOPS = 5e10
"""A core's arithmetic in training: an 18.9M Qwen2 with LoRA gave 1313 tokens/s on two cores (a trial of this
project)."""
START_S = {"cuda": 20.0, "mps": 10.0, "cpu": 6.0}
"""Until the model is loaded from memory: imports and all. cpu: measured on the embedded model; others: guesses."""
STORED_PER_S = 5e8
"""Bytes a second that a disk reads and writes: a SATA SSD's."""
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
    rest_s: float
    """Of `time_s`, what no training step takes: starting, loading, evaluating, saving."""
    tokens: int
    """That are learnt from."""
    tokens_per_s: float
    """While training; 0 where the device's speed is not known."""
    energy_wh: float
    """0 where the device's power or the time is not known."""
    disk_parts_bytes: dict[str, int]


class _Work(msgspec.Struct, kw_only=True, frozen=True):
    """How much is to be computed."""

    steps: float
    micro_batches: float
    batch: int
    """Sequences of a micro-batch."""
    row_tokens: float
    """Of a sequence."""

    @property
    def tokens(self) -> float:
        return self.micro_batches * self.batch * self.row_tokens


def predict(model: ModelFacts, recipe: "Recipe", device: Device, load: "Load", optimizer_bytes: float) -> Costs:
    """What training `model` by `recipe` on `device` costs; `optimizer_bytes`: of the optimizer's state."""
    work = _work(recipe, load)
    disk = _disk_parts(model, recipe, load, optimizer_bytes)
    steps_s = rest_s = tokens = 0.0
    speed = Roofline.of(device, recipe.dtype)
    if speed:
        seconds, tokens = _steps(model, recipe, speed, load, work)
        if load.rows:
            steps_s, rest_s = seconds, _rest(model, recipe, speed, load, work, disk)
    time_s = steps_s + rest_s
    low, high = UNCERTAIN[device.kind]
    return Costs(
        time_s=time_s,
        time_low_s=low * time_s,
        time_high_s=high * time_s,
        rest_s=rest_s,
        tokens=round(tokens) if load.rows else 0,
        tokens_per_s=tokens / seconds if speed else 0.0,
        energy_wh=device.power_w * time_s / 3600,
        disk_parts_bytes=disk,
    )


class Roofline(msgspec.Struct, kw_only=True, frozen=True):
    """What a device reaches in training (Williams et al. 2009, doi:10.1145/1498765.1498785)."""

    kind: str
    flops: float
    """Operations a second of matrix products."""
    bytes_per_s: float
    """Of what is no product; infinite where the memory's bandwidth is part of the measured arithmetic."""

    @staticmethod
    def of(device: Device, dtype: str) -> "Roofline | None":
        """None where the device's data sheet is not known."""
        if device.kind == "cpu":
            return Roofline(kind="cpu", flops=device.cores * CPU_CORE_FLOPS, bytes_per_s=math.inf)
        sheet = specification(device.name)
        if not sheet:
            return None
        tflops = {"bfloat16": sheet.bf16_tflops, "float16": sheet.fp16_tflops}.get(dtype) or sheet.fp32_tflops
        if not tflops:
            return None
        bandwidth = (sheet.bandwidth_gbps or math.inf) * 1e9
        return Roofline(kind=device.kind, flops=tflops * 1e12 * UTILISATION[device.kind], bytes_per_s=bandwidth)

    def seconds(self, flops: float, weight_bytes: float, traffic_bytes: float) -> float:
        """Products that read `weight_bytes`, then what is no product, which moves `traffic_bytes`."""
        reached = self.bytes_per_s * BANDWIDTH_UTILISATION
        return max(flops / self.flops, weight_bytes / reached) + traffic_bytes / reached


def _work(recipe: "Recipe", load: "Load") -> _Work:
    training = recipe.training
    room = float(training.max_length)
    row_tokens = min(load.mean_tokens / load.sequences, room) if load.rows else room
    rows = float(load.rows)
    if training.packing:  # a pack stands in the place of a row
        rows, row_tokens = rows * row_tokens / room, room
    steps = rows * training.num_train_epochs / training.per_device_train_batch_size
    steps = max(1.0, math.ceil(steps / training.gradient_accumulation_steps))
    if training.max_steps >= 0:
        steps = training.max_steps
    return _Work(
        steps=steps,
        micro_batches=steps * training.gradient_accumulation_steps,
        batch=training.per_device_train_batch_size * load.sequences,
        row_tokens=row_tokens,
    )


def _steps(model: ModelFacts, recipe: "Recipe", speed: Roofline, load: "Load", work: _Work) -> tuple[float, float]:
    """(seconds, tokens learnt from) of all training steps."""
    rollout = load.rollout
    if not rollout:
        return work.micro_batches * _micro_batch_s(model, recipe, speed, work.batch, work.row_tokens), work.tokens
    # A question's answers are written, token by token, judged by the reference, and learnt from a few times.
    answers = work.micro_batches * work.batch * rollout.answers
    length = work.row_tokens + rollout.tokens
    at_once = GENERATED_AT_ONCE * recipe.training.per_device_train_batch_size
    token_s = max(
        speed.seconds(2 * model.parameters * at_once, WIDTH[recipe.dtype] * model.parameters, 0),
        LAUNCH_S[speed.kind] * model.num_hidden_layers / 3,
    )
    learning = rollout.updates * answers / work.batch * _micro_batch_s(model, recipe, speed, work.batch, length)
    judging = (1 + rollout.reference) * answers / at_once * _forward_s(model, recipe, speed, at_once, length)
    return learning + judging + answers / at_once * rollout.tokens * token_s, answers * length * rollout.updates


def _micro_batch_s(model: ModelFacts, recipe: "Recipe", speed: Roofline, batch: int, row_tokens: float) -> float:
    """A micro-batch forward and backward.

    A weight and token take 2 operations forward, 2 for the activations' gradients, 2 for its own (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1). Frozen weights have no gradient; checkpointing adds a forward pass.
    """
    full = methods.trained_weights(recipe.method)
    again = 1 if recipe.training.gradient_checkpointing else 0
    return _passes_s(model, recipe, speed, batch, row_tokens, weights=(3 if full else 2) + again, others=3 + again)


def _forward_s(model: ModelFacts, recipe: "Recipe", speed: Roofline, batch: int, row_tokens: float) -> float:
    return _passes_s(model, recipe, speed, batch, row_tokens, weights=1, others=1)


def _passes_s(
    model: ModelFacts, recipe: "Recipe", speed: Roofline, batch: int, row_tokens: float, *, weights: int, others: int
) -> float:
    """Seconds of `weights` passes through the frozen or trained weights, and `others` through all else."""
    tokens = batch * row_tokens
    looked_up = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    used = (model.network.active_parameters if model.network.layers else model.parameters) - looked_up
    adapter = 0 if methods.trained_weights(recipe.method) else parameters.trained(model, recipe)
    queries = model.num_attention_heads * model.head_dim
    # The scores and what they weigh, 2 operations each, of half a square: what comes later is not seen.
    attention = 2 * row_tokens * queries * model.num_hidden_layers
    flops = tokens * (2 * used * weights + (2 * adapter + attention) * others)
    width = WIDTH[recipe.dtype]
    kept = ELEMENTWISE_BYTES * width / 2 * model.hidden_size * model.num_hidden_layers
    traffic = tokens * (kept * TRAFFIC + LOGIT_BYTES * model.vocab_size) * others / 3
    unpacked = weights * used * (NF4_READ + width) if recipe.quantization != "none" else 0
    unpacking = unpacked / (speed.bytes_per_s * DEQUANTISED)
    computed = speed.seconds(flops, weights * used * width, traffic)
    started = LAUNCH_S[speed.kind] * model.num_hidden_layers * others / 3
    return unpacking + (computed + started if speed.kind == "cpu" else max(computed, started))


def _rest(
    model: ModelFacts, recipe: "Recipe", speed: Roofline, load: "Load", work: _Work, disk: dict[str, int]
) -> float:
    """Starting, reading the model, the reference's and the evaluations' forward passes, and writing."""
    training = recipe.training
    forward_s = _forward_s(model, recipe, speed, work.batch, work.row_tokens)
    evaluations = training.eval_on_start + math.ceil(work.steps / training.eval_steps)
    rows = load.rows * load.passes_before + load.eval_rows * evaluations
    saved = math.ceil(work.steps / training.save_steps) * disk["checkpoints"] / KEPT_CHECKPOINTS + disk["exported"]
    stored_s = (model.weights_bytes + saved) / STORED_PER_S
    return START_S[speed.kind] + forward_s * rows * load.sequences / work.batch + stored_s


def _disk_parts(model: ModelFacts, recipe: "Recipe", load: "Load", optimizer_bytes: float) -> dict[str, int]:
    """What a run writes: the model where it is not here, checkpoints (weights and AdamW's moments), encoded rows, what
    comes out, and the merged model that usually follows an adapter."""
    trained = 4 * parameters.trained(model, recipe)
    full = methods.trained_weights(recipe.method)
    here = any(model.path.glob("*.safetensors"))
    parts = {
        "download": 0 if here else model.weights_bytes,
        "checkpoints": KEPT_CHECKPOINTS * (trained + optimizer_bytes),
        "rows": STORE_SHARE * load.data_bytes,
        "exported": model.weights_bytes if full else trained,
        "merged": 0 if full else model.weights_bytes,
    }
    return {name: math.ceil(value) for name, value in parts.items()}


def left_bytes(parts: Mapping[str, int]) -> int:
    """Of a disk's parts, what lies in the run when it has ended: one checkpoint, and what was exported."""
    return parts.get("checkpoints", 0) // KEPT_CHECKPOINTS + parts.get("exported", 0)
