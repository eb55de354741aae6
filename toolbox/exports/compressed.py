"""What llmcompressor can hold and needs, for gptq, awq and fp8: told from a model's facts, before anything starts."""

from typing import Any

import msgspec

from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.models import WEIGHT_BYTES, ModelFacts

GROUPS = (128, 64, 32)
"""Weights that share a scale, at most; engines' kernels take these sizes."""
ROWS, TOKENS = 128, 512
"""Rows to calibrate with, tokens of each at most: 128 are GPTQ's own number (arXiv:2210.17323, section 4)."""
INTERPRETER_BYTES = 700 << 20
"""What torch, transformers and llmcompressor take by themselves."""


class Scheme(msgspec.Struct, frozen=True):
    """How integers stand for weights. `bits` of each; `symmetric`: no zero points."""

    bits: int
    symmetric: bool = True


SCHEMES = {"w4a16": Scheme(4), "w8a16": Scheme(8), "w4a16_asym": Scheme(4, symmetric=False)}
"""llmcompressor's own names for them, in lower case."""


def group_size(model: ModelFacts) -> int:
    """The largest of GROUPS that divides the inputs of each linear of the decoder; 0: none does."""
    widths = {linear.inputs for layer in model.network.layers for linear in layer.linears}
    return next((size for size in GROUPS if all(width % size == 0 for width in widths)), 0)


def refuse(model: ModelFacts, home: Home) -> None:
    """Raise InputError for what was not seen to come out whole: experts, and towers for images or sound."""
    if model.network.vision or any(layer.experts or layer.others for layer in model.network.layers):
        raise InputError(
            _("{model} is more than a dense language model, and is not exported in this format.").format(
                model=model.id
            ),
            _("Take another format: {names}.").format(names="bnb, gguf"),
        )


def refuse_ungrouped(model: ModelFacts, home: Home) -> None:
    """`refuse`, and InputError where no group of weights divides the model's widths."""
    refuse(model, home)
    if not group_size(model):
        raise InputError(
            _("{model} has widths that no group of {sizes} weights divides.").format(
                model=model.id, sizes=", ".join(map(str, GROUPS))
            ),
            _("Take another format: {names}.").format(names="fp8, bnb, gguf"),
        )


def settings(model: ModelFacts, kind: str, rows: int) -> dict[str, Any]:
    """plan.settings of gptq and awq: llmcompressor's own names."""
    return {
        **msgspec.structs.asdict(SCHEMES[kind]), "group_size": group_size(model), "num_calibration_samples": rows,
        "max_seq_length": min(TOKENS, model.max_position_embeddings),
    }  # fmt: skip


def memory_bytes(format: str, model: ModelFacts, dtype: str, settings: dict[str, Any]) -> int:
    """The RAM that llmcompressor takes for a model that it loads in `dtype`, with its interpreter.

    fp8 reads a file of weights at a time and writes it anew. The others hold all weights, and of one layer GPTQ's
    Hessians (float32, inputs², one of them inverted in three copies) or AWQ's inputs, and between two layers the
    states of all rows.
    """
    weights = model.parameters * WEIGHT_BYTES[dtype]
    if format == "fp8":
        return INTERPRETER_BYTES + 2 * min(weights, _largest_file(model))
    tokens = settings["num_calibration_samples"] * settings["max_seq_length"]
    states = tokens * model.hidden_size * WEIGHT_BYTES[dtype]
    widths = [linear.inputs for linear in max(model.network.layers, key=lambda layer: layer.parameters).linears]
    if format == "gptq":
        return INTERPRETER_BYTES + weights + 2 * states + 4 * (sum(width**2 for width in widths) + 3 * max(widths) ** 2)
    return INTERPRETER_BYTES + weights + 4 * states


def _largest_file(model: ModelFacts) -> int:
    return max((path.stat().st_size for path in model.path.glob("*.safetensors")), default=model.weights_bytes)
