"""The files of a model's folder, read with suspicion: JSON objects and safetensors headers; no weights are read."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from toolbox.errors import CorruptError, InputError, NotFoundError
from toolbox.i18n import _

MAX_JSON_BYTES = 100 << 20
"""Longer headers than this are refused, as the safetensors library itself does; other JSON too."""
PICKLES = ("*.bin", "*.pt*")
DTYPES = {"F64": "float32", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class Tensor(msgspec.Struct, frozen=True):
    """A tensor as a safetensors header describes it (github.com/huggingface/safetensors#format)."""

    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def json_object(path: Path) -> dict[str, Any]:
    """Raises NotFoundError, and CorruptError where `path` holds anything else, or too much."""
    try:
        size = path.stat().st_size
        value = msgspec.json.decode(path.read_bytes()) if size <= MAX_JSON_BYTES else None
    except FileNotFoundError:
        raise NotFoundError(
            _("{path} is missing.").format(path=path), _("A model folder holds config.json and safetensors files.")
        ) from None
    except (OSError, msgspec.DecodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise CorruptError(_("{path} is torn or not JSON.").format(path=path), _("Fetch the model again."))
    return value


def tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the model, by name, from the headers of all its safetensors files.

    Raises InputError for pickles, NotFoundError for missing files, CorruptError for torn ones.
    """
    return {name: tensor for path in _shards(folder) for name, tensor in header(path).items()}


def any_weights(folder: Path) -> bool:
    """Whether weights of any format lie in `folder`, also ones that are never read."""
    return _any(folder, ("*.safetensors*", *PICKLES))


def gguf(folder: Path) -> Path | None:
    """The GGUF file that is the model, where its weights lie in no safetensors. Raises InputError where there are
    several."""
    found = sorted(folder.glob("*.gguf"))
    if not found or any(folder.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise InputError(
            _("{path} holds several GGUF files: {names}.").format(
                path=folder, names=", ".join(path.name for path in found)
            ),
            _("Put the one that is meant into a folder of its own, with config.json and tokenizer.json beside it."),
        )
    return found[0]


def _any(folder: Path, patterns: Sequence[str]) -> bool:
    return any(path for pattern in patterns for path in folder.glob(pattern))


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        whole = folder / "model.safetensors"
        if whole.is_file():
            return [whole]
        if _any(folder, PICKLES):
            raise InputError(
                _("{path} holds its weights as pickles, which can run code.").format(path=folder),
                _("Take a revision of the model with safetensors files."),
            )
        raise NotFoundError(_("{path} holds no safetensors weights.").format(path=folder), _("Fetch the model again."))
    names = json_object(index).get("weight_map")
    if not isinstance(names, dict) or not all(
        isinstance(name, str) and Path(name).name == name for name in names.values()
    ):
        raise CorruptError(_("{path} is torn or not JSON.").format(path=index), _("Fetch the model again."))
    shards = [folder / name for name in sorted(set(names.values()))]
    for shard in shards:
        if not shard.is_file():
            raise NotFoundError(
                _("{path} is missing, though {index} names it.").format(path=shard, index=index.name),
                _("Fetch the model again: what is there already is kept."),
            )
    return shards


def header(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file, by name, without reading their data.

    Raises CorruptError where the file is truncated or torn.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= MAX_JSON_BYTES:
                raise ValueError(length)
            raw = msgspec.json.decode(file.read(length), type=dict[str, dict[str, Any]])
        found = {name: msgspec.convert(value, Tensor) for name, value in raw.items() if name != "__metadata__"}
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError):
        found, length = {}, 0
    end = max((tensor.data_offsets[1] for tensor in found.values()), default=-9)
    if path.stat().st_size != 8 + length + end:
        raise CorruptError(
            _("{path} is truncated or torn.").format(path=path), _("Delete that file and fetch the model again.")
        )
    return found


def main_dtype(tensors: dict[str, Tensor]) -> str:
    """The type that most numbers of the model have; what is stored in integers counts as float16."""
    sizes: dict[str, int] = {}
    for tensor in tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype], default="F16"), "float16")
