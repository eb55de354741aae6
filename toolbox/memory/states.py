"""What is in memory through a whole step: weights, adapter, gradients, the optimizer's state; over one GPU or many."""

from typing import TYPE_CHECKING, Literal

import msgspec

from toolbox import methods, parameters
from toolbox.models import ModelFacts

if TYPE_CHECKING:
    from toolbox.memory import Recipe
    from toolbox.memory.implementation import Implementation

FLOAT = 4
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""4 bits a weight, 1 byte of scale for 64, 4 bytes for 256 scales (Dettmers et al. 2023, arXiv:2305.14314, section
3)."""
NF4_PLAIN_BYTES = 0.5 + 4 / 64
"""Without double quantisation: four bytes of scale for 64 weights."""
INT8_BYTES = 1.0
"""LLM.int8(): a byte a weight, and a scale a row (arXiv:2208.07339, section 3)."""
ADAM_BYTES = {
    "adamw_torch": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256, "galore_adamw": 8.0,
    "apollo_adamw": 8.0, "sgd": 0.0, "adafactor": 0.0,
}  # fmt: skip
"""Two moments a weight: in float32; in 8 bits with a scale for 256 (Dettmers et al. 2022, arXiv:2110.02861)."""
Strategy = Literal["", "ddp", "zero2", "zero3", "zero3-offload", "fsdp"]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "zero2", "zero3", "zero3-offload", "fsdp")
BUCKET_ELEMENTS = {"zero2": 5e8, "zero3": 5e8, "zero3-offload": 5e8}
"""Gradients in DeepSpeed's one buffer, made whole however few there are: the default of `reduce_bucket_size`
(runtime/zero/config.py, stage_1_and_2.py and stage3.py)."""
DDP_BUCKET_SHARE = 1.0
"""DDP's buckets hold every gradient a second time (torch/nn/parallel/distributed.py: gradient_as_bucket_view is False
by default)."""


class States(msgspec.Struct, kw_only=True, frozen=True):
    """Bytes on one device."""

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    optimizer_scratch: float = 0.0
    """That the optimizer's step takes for a moment."""
    gradient_width: int = FLOAT
    """Bytes of one gradient."""
    gradient_share: float = 1.0
    """Of the gradients that a layer's backward pass makes, what stays on this device."""
    exchange: float = 0.0
    """Buffers in which GPUs exchange gradients and gather weights."""


def states(model: ModelFacts, recipe: "Recipe", how: "Implementation", width: int) -> States:
    """On one device; `width`: bytes of the plan's dtype."""
    full = methods.trained_weights(recipe.method)
    trained = parameters.trained(model, recipe)
    each = (how.trained_weights or width) if full else how.adapter_weights
    return States(
        weights=base_bytes(model, recipe, how, width),
        adapter=0.0 if full else each * trained,
        gradients=float(each * parameters.with_gradient(model, recipe)),
        gradient_width=each,
        optimizer=moments_bytes(model, recipe) * each / FLOAT,
        optimizer_scratch=_scratch(model, recipe),
    )


def base_bytes(model: ModelFacts, recipe: "Recipe", how: "Implementation", width: int) -> float:
    """The base model's weights: masters where they are trained; in 4 bits the linears of its layers and tower."""
    if methods.trained_weights(recipe.method):
        return (how.trained_weights or width) * model.parameters
    if recipe.quantization == "none":
        return width * model.parameters
    tower = model.network.vision
    linear = sum(linear.inputs * linear.outputs * count for linear, count in model.network.each_linear())
    linear = linear if model.network.rounds else 0
    linear += tower.in_linears if tower else 0
    quantised = min(linear, model.parameters)
    return (model.parameters - quantised) * width + quantised * quantised_bytes(recipe)


def quantised_bytes(recipe: "Recipe") -> float:
    """Of a weight; 0 where none is quantised."""
    if recipe.quantization == "none":
        return 0.0
    if recipe.BitsAndBytesConfig.get("load_in_8bit"):
        return INT8_BYTES
    return NF4_BYTES if recipe.BitsAndBytesConfig.get("bnb_4bit_use_double_quant") else NF4_PLAIN_BYTES


def moments_bytes(model: ModelFacts, recipe: "Recipe") -> float:
    """The optimizer's state, over weights of float32; a plugin's counts as AdamW's."""
    if recipe.training.optim == "adafactor":  # a row and a column of each matrix (arXiv:1804.04235, section 3)
        return float(FLOAT * sum(count * (one.inputs + one.outputs) for one, count in model.network.each_linear()))
    each = ADAM_BYTES.get(recipe.training.optim, ADAM_BYTES["adamw_torch"])
    return each * parameters.optimizer_elements(model, recipe)


def _scratch(model: ModelFacts, recipe: "Recipe") -> float:
    """GaLore's and APOLLO's step makes each matrix three times over (training/projected.py, `_direction`)."""
    if recipe.method not in ("galore", "apollo"):
        return 0.0
    network = model.network
    largest = max((linear.inputs * linear.outputs for linear, _count in network.each_linear()), default=0)
    return float(3 * FLOAT * max(largest, network.vocab * network.hidden))


def sharded(whole: States, strategy: Strategy, gpus: int, gathered_bytes: float) -> States:
    """On each of `gpus`, by Rajbhandari et al. 2020 (arXiv:1910.02054, section 5 and figure 1).

    With N GPUs, ZeRO-2 (P_os+g, section 5.2) keeps all weights and 1/N of gradients and optimizer, ZeRO-3 and FSDP
    (P_os+g+p, section 5.3) 1/N of everything, frozen weights too; DDP keeps all. Our masters of float32 are the
    weights, 4 + 4 + 8 bytes each, where the paper counts 2 + 2 + 12: the sum is the same, ZeRO-2's share is not.
    zero3-offload: the optimizer's state in the processor's memory, and what else it may move there counted here still.

    `gathered_bytes`: of weights that ZeRO-3 and FSDP hold whole at once. The buffers are what the libraries do by
    default, read and not measured.
    """
    if gpus < 2 or not strategy:
        return whole
    if strategy == "ddp":
        return msgspec.structs.replace(whole, exchange=DDP_BUCKET_SHARE * whole.gradients)
    bucket = whole.gradient_width * BUCKET_ELEMENTS.get(strategy, 0.0)
    shared = msgspec.structs.replace(
        whole,
        gradients=whole.gradients / gpus,
        gradient_share=1 / gpus,
        optimizer=whole.optimizer / gpus,
        exchange=bucket,
    )
    if strategy == "zero2":
        return shared
    return msgspec.structs.replace(
        shared,
        weights=whole.weights / gpus,
        adapter=whole.adapter / gpus,
        optimizer=0.0 if strategy == "zero3-offload" else shared.optimizer,
        exchange=bucket + gathered_bytes,
    )
