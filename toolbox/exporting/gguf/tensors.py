"""The weights of a model as GGUF's tensors: which becomes which, and their numbers, some rows at a time."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open

from toolbox.errors import InputError
from toolbox.exporting.gguf import settings
from toolbox.exports.gguf import Architecture
from toolbox.i18n import _
from toolbox.merging.base import shards_of

CHUNK = 1 << 24
"""Numbers that are converted at once: 64 MB in float32."""
EXPERT = re.compile(
    r"(?P<block>.*\.layers\.\d+\.)(?:mlp|block_sparse_moe)\.experts\.(?P<number>\d+)\.(?P<part>\w+)\.weight"
)
STACKED = re.compile(r"(?P<block>.*\.layers\.\d+\.)mlp\.experts\.(?P<part>gate_up_proj|down_proj)")
PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
"""Mixtral's names of an expert's matrices."""
IN_FULL = ("ffn_gate_inp", "_norm", "rope_")
"""Tensors that stay in float32: routers and norms are small, and everything hangs on them."""

Change = Callable[[torch.Tensor], torch.Tensor]


class Piece(msgspec.Struct, frozen=True):
    """A stored tensor that goes, changed, into one of GGUF's: a whole one, or one expert of a stack."""

    name: str
    change: Change


class Target(msgspec.Struct, frozen=True):
    """A tensor of the GGUF file: its pieces follow each other along the first dimension."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * size


class Store:
    """The safetensors files of a folder, a tensor at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.where = {name: shard for shard, names in shards_of(folder).items() for name in names}

    def read(self, name: str) -> torch.Tensor:
        with safe_open(self._folder / self.where[name], framework="pt") as file:
            return file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        with safe_open(self._folder / self.where[name], framework="pt") as file:
            return tuple(file.get_slice(name).get_shape())


def targets(store: Store, config: Any, architecture: Architecture, kind: str) -> list[Target]:
    """Every tensor of the GGUF file. Raises InputError where one of the model's has no place in it."""
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    grouped: dict[str, list[Piece]] = {}
    for stored in sorted(store.where, key=_in_order):
        if _is_left_out(stored, config):
            continue
        for generic, change in _parts(stored, config, architecture):
            found = names.get_name(generic, try_suffixes=(".weight", ".bias"))
            if found is None:
                raise InputError(
                    _("The model's {name} has no place in GGUF's {architecture}.").format(
                        name=stored, architecture=architecture.name
                    ),
                    _("Serve the model as it is."),
                )
            grouped.setdefault(found, []).append(Piece(stored, change))
    return [_target(store, name, tuple(pieces), kind) for name, pieces in grouped.items()]


def _in_order(name: str) -> list[tuple[bool, int, str]]:
    """Names by their numbers, so that expert 10 comes after expert 9."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _is_left_out(name: str, config: Any) -> bool:
    """A head that is the embeddings once more, and frequencies that follow from the settings."""
    return name.endswith("rotary_emb.inv_freq") or (name == "lm_head.weight" and bool(config.tie_word_embeddings))


def _parts(name: str, config: Any, architecture: Architecture) -> Iterator[tuple[str, Change]]:
    """(the name by which gguf's table knows it, what is done to it) of a stored tensor; a fused one is two."""
    if match := EXPERT.fullmatch(name):
        part = PARTS.get(match["part"], match["part"])
        yield f"{match['block']}mlp.experts.{part}.weight", lambda tensor: tensor[None]
    elif (match := STACKED.fullmatch(name)) and match["part"] == "gate_up_proj":
        yield f"{match['block']}mlp.experts.gate_proj.weight", lambda tensor: tensor.chunk(2, dim=1)[0]
        yield f"{match['block']}mlp.experts.up_proj.weight", lambda tensor: tensor.chunk(2, dim=1)[1]
    elif match:
        yield f"{match['block']}mlp.experts.down_proj.weight", _as_it_is
    elif architecture.permuted and (count := heads(name, config)):
        yield name, lambda tensor: interleaved(tensor, count)
    elif architecture.norm_plus_one and name.endswith("norm.weight"):
        yield name, lambda tensor: tensor.float() + 1
    else:
        yield name, _as_it_is


def _as_it_is(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def heads(name: str, config: Any) -> int:
    """How many heads the rows of a query's or key's projection are; 0 for every other tensor."""
    if name.rpartition(".")[0].endswith("q_proj"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if name.rpartition(".")[0].endswith("k_proj") else 0


def interleaved(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head in the order 0, n/2, 1, n/2 + 1 …: pairs that are rotated together become neighbours."""
    halves = tensor.unflatten(0, (heads, 2, -1))
    return halves.transpose(1, 2).reshape(tensor.shape)


def _target(store: Store, name: str, pieces: tuple[Piece, ...], kind: str) -> Target:
    shapes = [piece.change(torch.empty(store.shape(piece.name), device="meta")).shape for piece in pieces]
    shape = shapes[0] if len(pieces) == 1 else (sum(one[0] for one in shapes), *shapes[0][1:])
    return Target(name, tuple(shape), _kind(name, tuple(shape), kind), pieces)


def _kind(name: str, shape: tuple[int, ...], wanted: str) -> Kind:
    """How a tensor is stored. Embeddings and head take 8 bits where the rest takes fewer: all of the text goes through
    them. Rows that are no multiple of a block stay in 16 bits."""
    if len(shape) < 2 or any(part in name for part in IN_FULL):
        return Kind.F32
    kind = Kind[wanted.upper()]
    if name.startswith(("token_embd", "output")) and kind in (Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1):
        kind = Kind.Q8_0
    return kind if shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else Kind.F16


def chunks(store: Store, target: Target) -> Iterator[np.ndarray]:
    """The tensor's bytes as the file holds them, some rows at a time; memory holds one stored tensor and a chunk."""
    for piece in target.pieces:
        tensor = piece.change(store.read(piece.name))
        rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor[None]
        each = max(1, CHUNK // rows.shape[1])
        for begin in range(0, len(rows), each):
            yield gguf.quants.quantize(rows[begin : begin + each].float().numpy(), target.kind)


def rope(config: Any) -> dict[str, np.ndarray]:
    """Tensors that are made of settings."""
    return {name: tensor.numpy() for name, tensor in settings.rope_tensors(config).items()}
