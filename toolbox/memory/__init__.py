"""The memory model: a training step's peak by parts, from a config alone, in milliseconds and without torch.

`plan` shows it. The operations of each layer stand on a tape (layers.py), with what each keeps in the training loop at
hand (implementation.py); the step's moments are gone through (moments.py), and the highest is the answer. What is there
all the time is counted by states.py. docs/memory.md states every term.
"""

import math
from typing import Any, Protocol

import msgspec

from toolbox import methods, parameters
from toolbox.calibration import Factors
from toolbox.costs import predict
from toolbox.device import Device
from toolbox.i18n import N_
from toolbox.memory import implementation, states
from toolbox.memory.implementation import Implementation
from toolbox.memory.layers import Work
from toolbox.memory.moments import Step, highest
from toolbox.memory.states import DTYPE_BYTES, Strategy
from toolbox.models import ModelFacts
from toolbox.recipe import Training
from toolbox.stages import GENERATED_AT_ONCE

PARTS = {
    "weights": N_("Weights"), "adapter": N_("Adapter"), "gradients": N_("Gradients"), "optimizer": N_("Optimizer"),
    "activations": N_("Activations"), "logits": N_("Logits"), "overhead": N_("Overhead"),
    "calibration": N_("Correction by runs here"), "exchange": N_("Exchange between GPUs"),
    "generation": N_("Writing answers"), "other models": N_("Reference and reward model"),
}  # fmt: skip
"""What people call the parts of an estimate."""
OVERHEAD_BYTES = {"cuda": 600 << 20, "mps": 500 << 20, "cpu": 400 << 20}
"""Before any weight is there. cuda: context and libraries, a usual figure, not measured here. cpu: the resident size
of a process that has imported torch 2.13, transformers and peft, measured. mps: between them, a guess."""
SAMPLING_COPIES = 12
"""Bytes beside a logit while an answer is written: its float32 copy, the sorted one and their probabilities."""


class Recipe(Protocol):
    """What the model needs of a recipe or a plan; `dtype` is settled."""

    @property
    def method(self) -> str: ...
    @property
    def quantization(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def training(self) -> Training: ...
    @property
    def LoraConfig(self) -> dict[str, Any]: ...
    @property
    def blocks(self) -> dict[str, dict[str, Any]]: ...
    @property
    def BitsAndBytesConfig(self) -> dict[str, Any]: ...


class Rollout(msgspec.Struct, kw_only=True, frozen=True):
    """What it takes that the model answers rows itself, and learns from that."""

    answers: int
    """To a row."""
    tokens: int
    """Of an answer at most."""
    updates: int
    """Times that each answer is learnt from."""
    reference: bool
    """Whether a reference is asked."""
    reward_model_bytes: int
    """Its weights in the files."""


class Load(msgspec.Struct, kw_only=True, frozen=True):
    """What data do to a training step."""

    rows: int
    longest_tokens: int
    """Of the longest row, an upper bound, before it is cut to `max_length`."""
    mean_tokens: float
    sequences: int = 1
    """That a row becomes, each up to `max_length`."""
    label_share: float = 1.0
    """Of a row's tokens, those that are labels."""
    scored: bool = False
    """Whether logits are made at the end of each sequence only."""
    passes_before: int = 0
    """Forward passes over all rows before the first step."""
    data_bytes: int = 0
    """Of the files that the rows are read from."""
    eval_rows: int = 0
    """That are evaluated, on top."""
    rollout: Rollout | None = None
    """Where the model answers the rows itself."""


class Estimate(msgspec.Struct, kw_only=True, frozen=True):
    """What a plan predicts. `parts_bytes` adds up to `peak_bytes`.

    Parts: weights, adapter, gradients, optimizer, activations, logits, overhead.
    """

    peak_bytes: int
    parts_bytes: dict[str, int]
    device_bytes: int
    """What the device offers: its free memory at planning, in bytes."""
    fits: bool
    time_s: float
    """0 where the device's speed or the data are not known."""
    time_low_s: float = 0.0
    time_high_s: float = 0.0
    rest_s: float = 0.0
    """Of `time_s`, what no training step takes: starting, loading, evaluating, saving."""
    tokens: int = 0
    """That are learnt from."""
    tokens_per_s: float = 0.0
    """While training; 0 where the device's speed is not known."""
    energy_wh: float = 0.0
    """0 where the device's power or the time is not known."""
    disk_bytes: int
    disk_parts_bytes: dict[str, int] = {}
    """Parts: checkpoints, rows, exported, merged. They add up to `disk_bytes`."""
    margin: float = 0.0
    """Share of the device's free memory that a plan was asked to leave free."""
    factors: Factors = Factors()
    """What runs of this machine have changed the formulas' figures by."""


def estimate(model: ModelFacts, recipe: Recipe, device: Device, load: Load) -> Estimate:
    """What training `model` by `recipe` on `device` takes.

    It is the worst micro-batch that counts: every row as long as the longest, all of it labels.
    """
    parts = parts_bytes(model, recipe, device, load)
    peak = sum(parts.values())
    costs = predict(model, recipe, device, load, states.moments_bytes(model, recipe))
    return Estimate(
        peak_bytes=peak,
        parts_bytes=parts,
        device_bytes=device.memory_free_bytes,
        fits=peak <= device.memory_free_bytes,
        disk_bytes=sum(costs.disk_parts_bytes.values()),
        **msgspec.structs.asdict(costs),
    )


def parts_bytes(
    model: ModelFacts,
    recipe: Recipe,
    device: Device,
    load: Load,
    how: Implementation | None = None,
    strategy: Strategy = "",
    gpus: int = 1,
) -> dict[str, int]:
    """The peak by parts, in bytes, on each of `gpus`, all with the recipe's micro-batch.

    `how`: another training loop than ours on that device. `strategy`: without one, each has all there is.
    """
    how = how or implementation.BY_DEVICE[device.kind]
    step = _step(model, recipe, device, load, how)
    whole = states.states(model, recipe, how, step.work.width)
    there = states.sharded(whole, strategy, gpus, _gathered_bytes(model, step.work.width))
    moment = highest(step, there)
    parts = {
        "weights": there.weights,
        "adapter": there.adapter,
        "gradients": moment.get("gradients", 0.0),
        "optimizer": there.optimizer,
        "activations": moment.get("activations", 0.0),
        "logits": moment.get("logits", 0.0),
        "overhead": float(OVERHEAD_BYTES[device.kind]),
    }
    if there.exchange:
        parts["exchange"] = there.exchange
    if load.rollout:
        # Answers are written before they are learnt from: only what that takes more comes on top.
        learning = sum(moment.values())
        parts["generation"] = max(0.0, _generation(model, recipe, load) - learning)
        parts["other models"] = float(load.rollout.reward_model_bytes) + (
            step.work.width * model.parameters if load.rollout.reference and methods.changes_base(recipe) else 0
        )
    return {name: math.ceil(value) for name, value in parts.items()}


def _gathered_bytes(model: ModelFacts, width: int) -> float:
    """What ZeRO-3 and FSDP gather at once: a layer and the one after it, and embeddings and head, which FSDP's
    outermost unit does not let go between (`fully_shard`: reshard_after_forward is False for the root by default)."""
    network = model.network
    return float(width * (2 * max((kind.parameters for kind in network.layers), default=0) + network.embeddings))


def _step(model: ModelFacts, recipe: Recipe, device: Device, load: Load, how: Implementation) -> Step:
    """What the recipe makes of the model's network in a micro-batch of the worst rows."""
    training, settings, network = recipe.training, methods.settings(recipe), model.network
    sequences = training.per_device_train_batch_size * load.sequences
    longest = min(training.max_length, load.longest_tokens)
    method = methods.find(recipe.method)
    full = method.kind == "weights"
    width = DTYPE_BYTES[recipe.dtype]
    adapter = method.kind == "adapter" and method.block != "LNTuningConfig"
    layers = network.depth
    trained_layers = layers
    if full and recipe.method in ("freeze", "lisa"):
        trained_layers = min(layers, parameters.trained_layers(recipe))
    work = Work(
        tokens=sequences * longest,
        longest=longest,
        width=width,
        stream=(how.trained_weights or width) if full else width,
        full=full,
        targets=frozenset(parameters.targets(model, method.block, settings)) if adapter else frozenset(),
        rank=parameters.rank(settings) if adapter else 0,
        dropout=bool(recipe.LoraConfig.get("lora_dropout")),
        quantised=states.quantised_bytes(recipe) if network.rounds else 0.0,
        intervention=parameters.rank(settings, 4) if method.kind == "loreft" else 0,
        norms_in_float32=device.kind == "cuda" and how.autocast and width != 4,
        accumulates=training.gradient_accumulation_steps > 1,
    )
    everything = full and recipe.method != "freeze"
    return Step(
        network=network,
        work=work,
        how=how,
        labels=sequences if load.scored else math.ceil(load.label_share * work.tokens),
        classes=1 if load.scored else network.vocab,
        depth_trained=trained_layers if recipe.method == "freeze" else layers,
        full_layers=trained_layers,
        head_trained=everything,
        embedding_trained=everything,
        checkpointing=training.gradient_checkpointing,
        padded=_is_padded(model, longest),
    )


def _is_padded(model: ModelFacts, longest: int) -> bool:
    """Whether rows can't be laid end to end (training/attention.py): attention isn't told of them, or some layers look
    back over a window."""
    windows = {kind.attention.window for kind in model.network.layers if kind.attention}
    return not model.network.flattens or len(windows) > 1 or any(0 < window < longest for window in windows)


def _generation(model: ModelFacts, recipe: Recipe, load: Load) -> float:
    """Keys and values of all tokens of the answers that are written at once, and the logits of one token each."""
    width, at_once = DTYPE_BYTES[recipe.dtype], GENERATED_AT_ONCE * recipe.training.per_device_train_batch_size
    tokens = min(recipe.training.max_length, load.longest_tokens)
    parts = [(kind.attention, kind.count) for kind in model.network.layers if kind.attention]
    each = sum(count * part.kv_heads * (part.head_dim + part.value_dim) for part, count in parts)
    return at_once * (width * tokens * each + model.vocab_size * (width + SAMPLING_COPIES))
