"""The facts of a model that is known by name and is not here: of a published shape, or one guessed from its size."""

import functools
import math
from pathlib import Path
from typing import Any

import msgspec

from toolbox import models, networks
from toolbox.models import ModelFacts
from toolbox.registry.rows import Model

TABLE = Path(__file__).with_name("shapes.json")
"""Published shapes, each with its source, made by scripts/shapes.py."""
LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
HEADS = ("num_attention_heads", "num_key_value_heads", "n_head", "num_kv_heads")
WIDTHS = (
    "hidden_size", "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_embd", "d_model",
)  # fmt: skip
STEP = 64
"""Widths are multiples of this."""
GUESSED = "guessed/"
"""Begins the names of shapes that nobody published; scripts/registry.py makes them beforehand, which takes a while."""
CLOSE = 0.01
"""How near a guessed shape comes to the size that is named."""
USUAL = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128256,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip
"""Llama 3.1 8B (arXiv:2407.21783, table 3): what a model of no known kind is taken to be like."""


class Shape(msgspec.Struct, frozen=True):
    """An entry of shapes.json."""

    source: str
    """Where it is published; empty: it is guessed."""
    config: dict[str, Any]


def facts(model: Model, path: Path = Path()) -> ModelFacts:
    """What planning needs to know of `model`, without its files; `path`: where it would lie. Milliseconds."""
    config = {**config_of(model), "architectures": [model.architecture if model.native else ""]}
    read = models.facts_of_config(config, id=model.name, source="registry", path=path)
    return msgspec.structs.replace(
        read,
        model_type=model.model_type or read.model_type,
        chat_template=True,
        quantization=model.quantised,
        guessed=not source(model),
    )


def source(model: Model) -> str:
    """Where its shape is published; empty where it is guessed from its size."""
    return "; ".join(_shape(part).source for part in model.shape.split("+") if part in _table())


def config_of(model: Model) -> dict[str, Any]:
    """The values of its config.json that say how wide and deep it is."""
    parts = [_shape(part).config for part in model.shape.split("+") if part in _table()]
    if len(parts) == 2:
        text, vision = parts
        return {
            "model_type": model.model_type or "internvl", "text_config": text.get("text_config", text),
            "vision_config": vision, "tie_word_embeddings": text.get("tie_word_embeddings", False),
        }  # fmt: skip
    return parts[0] if parts else guessed(model.model_type, model.params_b, bool(model.active_b))


@functools.cache
def guessed(model_type: str, params_b: float, experts: bool) -> dict[str, Any]:
    """The shape nearest in size of the same kind, made wider and deeper alike until it has as many parameters.

    Width and depth grow together, each with the cube root of the size, as they do from one size to the next within
    families (Kaplan et al. 2020, arXiv:2001.08361, section 3.1, found the proportion to matter little).
    """
    kin = [shape for shape in map(_shape, _published().get(model_type, ())) if _size(shape.config)]
    usual = _shape("Qwen/Qwen3-30B-A3B").config if experts else USUAL
    near = min(kin, key=lambda shape: abs(math.log(_size(shape.config) / params_b / 1e9)), default=Shape("", usual))
    return _grown(near.config, params_b * 1e9) or _grown(usual, params_b * 1e9) or usual


def _grown(config: dict[str, Any], parameters: float) -> dict[str, Any]:
    """`config` with so many parameters, within `CLOSE`: found by halving the range that its growth lies in.

    Empty where it can't be grown so far.
    """
    if abs(_size(config) / parameters - 1) < 3 * CLOSE:
        return config
    low, high = 0.02, 50.0
    grown = config
    for _round in range(24):
        factor = math.sqrt(low * high)
        grown = _times(config, factor)
        if abs(_size(grown) / parameters - 1) < CLOSE:
            break
        low, high = (factor, high) if _size(grown) < parameters else (low, factor)
    return grown if abs(_size(grown) / parameters - 1) < 10 * CLOSE else {}


def _times(config: dict[str, Any], factor: float) -> dict[str, Any]:
    """`config` that many times as wide and as deep; the heads stay as they are, there are more of them."""
    outer = "text_config" if isinstance(config.get("text_config"), dict) else ""
    text = dict(config[outer] if outer else config)
    heads = int(text.get("num_attention_heads") or text.get("n_head") or 1)
    grouped = _first(text, "num_key_value_heads", "num_kv_heads") or heads
    wanted = max(1, round(heads * factor))
    groups = min(grouped, wanted)
    if "head_dim" not in text and (hidden := _first(text, "hidden_size", "n_embd", "d_model")):
        text["head_dim"] = max(8, hidden // heads)
    for name in WIDTHS:
        if isinstance(value := text.get(name), int):
            text[name] = max(STEP, round(value * factor / STEP) * STEP)
    for name in LAYERS:
        if isinstance(value := text.get(name), int):
            text[name] = _layers(text, max(1, round(value * factor)))
    for name in HEADS:
        if name in text:
            text[name] = groups if "k" in name and grouped != heads else max(groups, wanted - wanted % groups)
    return {**config, outer: text} if outer else text


def _layers(text: dict[str, Any], count: int) -> int:
    """`count`, with the kinds of the layers repeated as often."""
    for name, kinds in text.items():
        if isinstance(kinds, list) and kinds:
            text[name] = [kinds[index % len(kinds)] for index in range(count)]
    return count


def _first(values: dict[str, Any], *names: str) -> int:
    return next((value for name in names if isinstance(value := values.get(name), int)), 0)


def _size(config: dict[str, Any]) -> int:
    return networks.read(config).parameters


@functools.cache
def _published() -> dict[str, list[str]]:
    """Names of published shapes by model type."""
    found: dict[str, list[str]] = {}
    for name in _table():
        if not name.startswith(("vision/", GUESSED)):
            found.setdefault(str(_shape(name).config.get("model_type")), []).append(name)
    return found


@functools.cache
def _table() -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(TABLE.read_bytes(), type=dict[str, msgspec.Raw])


@functools.cache
def _shape(name: str) -> Shape:
    return msgspec.json.decode(_table()[name], type=Shape)
