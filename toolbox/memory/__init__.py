"""The memory model: a training step's peak by parts, from a config alone, in milliseconds and without torch.

`plan` shows it. After Korthikanti et al. 2022 (arXiv:2205.05198, section 4), adapted to what the training loop here
does: rows laid end to end without padding, fused attention (no scores are kept), SwiGLU, grouped queries, logits only
where a label is.
"""

import math
from typing import Any, Protocol

import msgspec

from toolbox import methods, parameters
from toolbox.calibration import Factors
from toolbox.costs import predict
from toolbox.device import Device
from toolbox.models import ModelFacts
from toolbox.recipe import Training
from toolbox.stages import GENERATED_AT_ONCE

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class _Kept(msgspec.Struct, frozen=True):
    """Bytes a token that a decoder layer keeps for its backward pass, by each width of the layer."""

    hidden: float
    inner: float
    queries: float
    keys: float


KEPT = {
    ("adapter", 2): _Kept(18, 8, 6.25, 4),
    ("adapter", 4): _Kept(16, 16, 8.25, 8),
    ("full", 2): _Kept(26, 8, 4.25, 4),
    ("full", 4): _Kept(24, 16, 8.25, 8),
}
"""By what is tuned and the bytes of the arithmetic's type. Measured with `bench/activations.py`: the tensors that
autograd saves in a Llama layer, a linear fit without residue (torch 2.13, transformers 5.23, peft 0.21); 16 bits run
under autocast, as in the loop."""

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits a weight, 1 byte of scale for 64, 4 bytes for 256 scales (Dettmers et al. 2023, arXiv:2305.14314, section
3)."""
NF4_PLAIN_BYTES = 0.5 + 4 / 64
"""Without double quantisation: four bytes of scale for 64 weights."""
ADAM_BYTES = {
    "adamw_torch": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256, "galore_adamw": 8.0,
    "apollo_adamw": 8.0,
}  # fmt: skip
"""Two moments a weight: in float32; in 8 bits with a scale for 256 (Dettmers et al. 2022, arXiv:2110.02861)."""
LOSS_BYTES = 12
"""Beside a logit itself, three in float32: its copy or gradient, the log-softmax that is kept, and that one's
gradient."""
OVERHEAD_BYTES = {"cuda": 600 << 20, "mps": 500 << 20, "cpu": 400 << 20}
"""Before any weight is there. cuda: context and libraries, a usual figure, not measured here. cpu: the resident size
of a process that has imported torch 2.13, transformers and peft, measured. mps: between them, a guess."""


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
    costs = predict(model, recipe, device, load, _moments_bytes(model, recipe))
    return Estimate(
        peak_bytes=peak,
        parts_bytes=parts,
        device_bytes=device.memory_free_bytes,
        fits=peak <= device.memory_free_bytes,
        disk_bytes=sum(costs.disk_parts_bytes.values()),
        **msgspec.structs.asdict(costs),
    )


def parts_bytes(model: ModelFacts, recipe: Recipe, device: Device, load: Load) -> dict[str, int]:
    """The peak by parts, in bytes."""
    training = recipe.training
    sequences = training.per_device_train_batch_size * load.sequences
    tokens = sequences * min(training.max_length, load.longest_tokens)
    width = DTYPE_BYTES[recipe.dtype]
    trained = parameters.trained(model, recipe)
    logits = (sequences if load.scored else load.label_share * tokens) * model.vocab_size * (width + LOSS_BYTES)
    activations = _activations(model, recipe, tokens, logits)
    gradients: float = 4 * trained
    if training.gradient_accumulation_steps == 1:
        # Gradients grow while activations go: only what they outgrow them by comes on top.
        gradients = max(0, gradients - activations - logits)
    kept_for_learning = activations + logits + gradients
    parts = {
        "weights": _weights(model, recipe),
        "adapter": 0 if methods.trained_weights(recipe.method) else 4 * trained,
        "gradients": gradients,
        "optimizer": _moments_bytes(model, recipe),
        "activations": activations,
        "logits": logits,
        "overhead": OVERHEAD_BYTES[device.kind],
    }
    if load.rollout:
        # Answers are written before they are learnt from: only what that takes more comes on top.
        parts["generation"] = max(0, _generation(model, recipe, load) - kept_for_learning)
        parts["other models"] = load.rollout.reward_model_bytes + (
            width * model.parameters if load.rollout.reference and methods.changes_base(recipe) else 0
        )
    return {name: math.ceil(value) for name, value in parts.items()}


def _generation(model: ModelFacts, recipe: Recipe, load: Load) -> float:
    """Keys and values of all tokens of the answers that are written at once, and the logits of one token each."""
    width, at_once = DTYPE_BYTES[recipe.dtype], GENERATED_AT_ONCE * recipe.training.per_device_train_batch_size
    tokens = min(recipe.training.max_length, load.longest_tokens)
    cached = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * width * tokens
    return at_once * (cached + model.vocab_size * (width + LOSS_BYTES))


def _weights(model: ModelFacts, recipe: Recipe) -> float:
    """The base. Full: float32, and under autocast 16-bit copies of the linears. QLoRA: quantised linears, one of them
    unpacked."""
    width = DTYPE_BYTES[recipe.dtype]
    linear = model.num_hidden_layers * sum(inputs * outputs for inputs, outputs in model.linears.values())
    if methods.trained_weights(recipe.method):
        return 4 * model.parameters + (2 * linear if width == 2 else 0)
    if recipe.quantization == "none":
        return width * model.parameters
    double = recipe.BitsAndBytesConfig.get("bnb_4bit_use_double_quant")
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)
    quantised = max(0, model.parameters - embeddings)
    largest = max(inputs * outputs for inputs, outputs in model.linears.values())
    return (
        (model.parameters - quantised) * width
        + quantised * (NF4_BYTES if double else NF4_PLAIN_BYTES)
        + largest * width
    )


def _activations(model: ModelFacts, recipe: Recipe, tokens: int, logits: float) -> float:
    """What is kept for the backward pass; attention stays within rows, so there is no mask and nothing quadratic."""
    width = DTYPE_BYTES[recipe.dtype]
    layer = tokens * _kept_per_token(model, recipe)
    if not recipe.training.gradient_checkpointing:
        return model.num_hidden_layers * layer
    # Each layer's input is kept; a layer computed anew comes on top, but only after the logits are gone.
    return model.num_hidden_layers * tokens * model.hidden_size * width + max(0, layer - logits)


def _kept_per_token(model: ModelFacts, recipe: Recipe) -> float:
    """Bytes a token that one decoder layer keeps."""
    width = DTYPE_BYTES[recipe.dtype]
    full = methods.trained_weights(recipe.method)
    kept = KEPT["full" if full else "adapter", width]
    queries, keys = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
    total = (
        kept.hidden * model.hidden_size
        + kept.inner * model.intermediate_size
        + kept.queries * queries
        + kept.keys * keys
    )
    if full:
        return total
    settings = methods.settings(recipe)
    targets = parameters.targets(model, methods.find(recipe.method).block, settings)
    total += width * parameters.rank(settings) * len(targets)
    if recipe.LoraConfig.get("lora_dropout"):
        # Each adapted linear keeps its own dropped input, and the mask in the same type.
        total += 2 * width * sum(model.linears[name][0] for name in targets)
    return total


def _moments_bytes(model: ModelFacts, recipe: Recipe) -> float:
    """The optimizer's state; a plugin's counts as AdamW's in float32."""
    each = ADAM_BYTES.get(recipe.training.optim, ADAM_BYTES["adamw_torch"])
    return each * parameters.optimizer_elements(model, recipe)
