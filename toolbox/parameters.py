"""How many weights a method trains, by the formulas of its paper, from a config alone; `plan` counts memory by it."""

import math
from collections.abc import Callable
from typing import Any

from toolbox import methods
from toolbox.methods import Configured
from toolbox.models import ModelFacts

Settings = dict[str, Any]


def trained(model: ModelFacts, of: Configured) -> int:
    """The weights that get a gradient. Where no formula is known here, LoRA's of the same rank, which is a bound.

    A recipe's `target_modules` are heeded as far as they name linears of the model.
    """
    method = methods.find(of.method)
    if method.kind == "weights":
        return _own_weights(model, of)
    if method.kind == "loreft":
        return _loreft(model, methods.settings(of))
    settings = methods.settings(of)
    if method.block == "LNTuningConfig":
        return _norms(model)
    shared = _SHARED.get(method.block, lambda model, settings: 0)(model, settings)
    module = _frozen_a if method.name == "lora-fa" else _A_MODULE.get(method.block, _lora)
    adapted = targets(model, method.block, settings)
    each = (
        count * module(linear.inputs, linear.outputs, settings)
        for linear, count in model.network.each_linear()
        if linear.name in adapted
    )
    return sum(each) + shared


def with_gradient(model: ModelFacts, of: Configured) -> int:
    """Weights that have a gradient at the same time: all that are trained, but for LISA's resting layers."""
    return optimizer_elements(model, of) if of.method == "lisa" else trained(model, of)


def optimizer_elements(model: ModelFacts, of: Configured) -> int:
    """Numbers that each of AdamW's two moments holds: as many as weights, fewer where gradients are projected.

    GaLore and APOLLO keep them as rank × the longer side (arXiv:2403.03507, table 1); LISA for its few layers only.
    """
    if of.method in ("galore", "apollo"):
        rank = methods.own(of, methods.find(of.method).block).rank
        saved = 0
        for linear, count in model.network.each_linear():
            short, long = sorted((linear.inputs, linear.outputs))
            kept = min(rank, short)
            projection = kept * short // 2 if of.method == "galore" else 0  # one, in float32, beside two moments
            saved += count * ((short - kept) * long - projection)
        return model.parameters - saved
    if of.method == "lisa":
        layers = min(methods.own(of, "LisaConfig").layers, model.num_hidden_layers)
        return _embeddings(model) + layers * _layer(model)
    return trained(model, of)


def targets(model: ModelFacts, block: str, settings: Settings) -> list[str]:
    """The linears that are adapted; where none has a name that is asked for, all of them."""
    known = model.network.linears
    chosen = settings.get("target_modules")
    if chosen is None and block == "IA3Config":
        chosen = ["q_proj", "v_proj", "down_proj"]
    named = [name for name in known if isinstance(chosen, list) and {name, name.rsplit(".")[-1]} & set(chosen)]
    return named or list(known)


def rank(settings: Settings, default: int = 8) -> int:
    """`r`, or the library's default of it."""
    value = settings.get("r", default)
    return value if type(value) is int and value > 0 else default


def _number(settings: Settings, name: str, default: int) -> int:
    value = settings.get(name, default)
    return value if type(value) is int and value > 0 else default


def trained_layers(of: Configured) -> int:
    """Layers that `freeze` and LISA train at a time."""
    return abs(methods.own(of, "FreezeConfig" if of.method == "freeze" else "LisaConfig").layers)


def _own_weights(model: ModelFacts, of: Configured) -> int:
    """`freeze`: its layers. LISA: all, as each weight may get its turn."""
    if of.method == "freeze":
        return min(abs(methods.own(of, "FreezeConfig").layers), model.num_hidden_layers) * _layer(model)
    return model.parameters


def _layer(model: ModelFacts) -> int:
    return max(0, model.parameters - _embeddings(model)) // model.num_hidden_layers


def _embeddings(model: ModelFacts) -> int:
    return model.vocab_size * model.hidden_size * (1 if model.tie_word_embeddings else 2)


def _norms(model: ModelFacts) -> int:
    """Two a layer and the last one, a bound: peft leaves some out in some architectures."""
    return (2 * model.num_hidden_layers + 1) * model.hidden_size


def _loreft(model: ModelFacts, settings: Settings) -> int:
    """R and W of r × hidden, b of r, a layer (arXiv:2404.03592, equation 2)."""
    layers = settings.get("layers") or range(model.num_hidden_layers)
    return len(layers) * rank(settings, 4) * (2 * model.hidden_size + 1)


# One adapted linear of `inputs` × `outputs`, by the class that takes the settings.


def _lora(inputs: int, outputs: int, settings: Settings) -> int:
    """r (in + out) (arXiv:2106.09685, section 4.2); DoRA has a length for each output (arXiv:2402.09353)."""
    return rank(settings) * (inputs + outputs) + (outputs if settings.get("use_dora") else 0)


def _frozen_a(inputs: int, outputs: int, settings: Settings) -> int:
    return rank(settings) * outputs


def _adalora(inputs: int, outputs: int, settings: Settings) -> int:
    """P, Λ and Q of the initial rank (arXiv:2303.10512, equation 3)."""
    return _number(settings, "init_r", 12) * (inputs + outputs + 1)


def _wide_lora(inputs: int, outputs: int, settings: Settings) -> int:
    """LoRA's shapes, of r 32 unless said otherwise (HiRA, SHiRA, GraLoRA)."""
    return rank(settings, 32) * (inputs + outputs)


def _delora(inputs: int, outputs: int, settings: Settings) -> int:
    return rank(settings) * (inputs + outputs) + 1


def _oft(inputs: int, outputs: int, settings: Settings) -> int:
    """A skew-symmetric matrix a block of the inputs (arXiv:2306.07280, section 4)."""
    size = _number(settings, "oft_block_size", 32)
    return inputs // size * (size * (size - 1) // 2)


def _boft(inputs: int, outputs: int, settings: Settings) -> int:
    """Blocks of each butterfly factor, and a scale for each output (arXiv:2311.06243, section 4)."""
    size = _number(settings, "boft_block_size", 4)
    return _number(settings, "boft_n_butterfly_factor", 1) * inputs * size + outputs


def _vera(inputs: int, outputs: int, settings: Settings) -> int:
    """The vectors d and b (arXiv:2310.11454, section 3.2); the shared random matrices are not trained."""
    return rank(settings, 256) + outputs


def _ia3(inputs: int, outputs: int, settings: Settings) -> int:
    """A vector a module (arXiv:2205.05638, section 3.3): the larger side, a bound."""
    return max(inputs, outputs)


def _loha(inputs: int, outputs: int, settings: Settings) -> int:
    """Twice LoRA's (arXiv:2108.06098, proposition 1)."""
    return 2 * rank(settings) * (inputs + outputs)


def _lokr(inputs: int, outputs: int, settings: Settings) -> int:
    """A small full factor and a larger one of rank r (arXiv:2309.14859, section 3.2)."""
    (small_out, large_out), (small_in, large_in) = _factors(outputs), _factors(inputs)
    r = rank(settings)
    large = r * (large_out + large_in) if r < max(large_out, large_in) / 2 else large_out * large_in
    return small_out * small_in + large


def _factors(size: int) -> tuple[int, int]:
    """The two factors of `size` that are closest to its root, the smaller first."""
    small = next(number for number in range(math.isqrt(size), 0, -1) if size % number == 0)
    return small, size // small


def _frequencies(inputs: int, outputs: int, settings: Settings) -> int:
    return _number(settings, "n_frequency", 1000)


def _wavelets(inputs: int, outputs: int, settings: Settings) -> int:
    return _number(settings, "n_frequency", 2592)


def _miss(inputs: int, outputs: int, settings: Settings) -> int:
    """One block of r × out (arXiv:2409.15371, section 3)."""
    return rank(settings, 64) * outputs


def _hra(inputs: int, outputs: int, settings: Settings) -> int:
    """r reflections of the inputs (arXiv:2405.17484, section 3)."""
    return rank(settings) * inputs


def _randlora(inputs: int, outputs: int, settings: Settings) -> int:
    """Λ and Γ of each of the bases that make up full rank (arXiv:2502.00987, section 4)."""
    r, short = rank(settings, 32), min(inputs, outputs)
    return math.ceil(short / r) * (r + short)


def _vblora(inputs: int, outputs: int, settings: Settings) -> int:
    """Logits over the bank, for each piece of A and B (arXiv:2405.15179, section 3)."""
    pieces = (inputs + outputs) // _number(settings, "vector_length", 256)
    return rank(settings, 4) * pieces * _number(settings, "num_vectors", 256)


def _c3a(inputs: int, outputs: int, settings: Settings) -> int:
    """One kernel a block (arXiv:2407.19342, section 3.3)."""
    return inputs * outputs // _number(settings, "block_size", 256)


def _road(inputs: int, outputs: int, settings: Settings) -> int:
    """An angle and a length for each pair of outputs (arXiv:2409.00119, section 3)."""
    return outputs


def _bank(model: ModelFacts, settings: Settings) -> int:
    return _number(settings, "num_vectors", 256) * _number(settings, "vector_length", 256)


def _psoft(inputs: int, outputs: int, settings: Settings) -> int:
    """A rotation of the subspace and two scales (arXiv:2505.11235, section 4)."""
    r = rank(settings, 32)
    return r * (r - 1) // 2 + 2 * r


_A_MODULE: dict[str, Callable[[int, int, Settings], int]] = {
    "LoraConfig": _lora, "AdaLoraConfig": _adalora, "OFTConfig": _oft, "BOFTConfig": _boft, "VeraConfig": _vera,
    "IA3Config": _ia3, "LoHaConfig": _loha, "LoKrConfig": _lokr, "FourierFTConfig": _frequencies,
    "WaveFTConfig": _wavelets, "MissConfig": _miss, "ShiraConfig": _wide_lora, "HRAConfig": _hra,
    "RandLoraConfig": _randlora, "HiraConfig": _wide_lora, "VBLoRAConfig": _vblora, "C3AConfig": _c3a,
    "RoadConfig": _road, "DeloraConfig": _delora, "GraloraConfig": _wide_lora, "PsoftConfig": _psoft,
}  # fmt: skip
_SHARED: dict[str, Callable[[ModelFacts, Settings], int]] = {"VBLoRAConfig": _bank}
"""What is trained once for the whole model."""
