"""Texts as vectors, by models made for it: encoders, and language models with a pooling of their own."""

import base64
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from toolbox import files, loading
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.serving.protocol import EmbeddingRequest, Refused

POOLINGS = ("pooling.json", "1_Pooling/config.json")
"""Where the pooling is stated: in an engine's view of a model, and in a folder as sentence-transformers writes it."""
TOKENS_AT_ONCE = 4096
_MODES = {
    "pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "lasttoken",
}  # fmt: skip


def is_one(folder: Path) -> bool:
    """Whether the model in `folder` was made for vectors: its pooling is stated, or it has no head at all."""
    config = files.read_json(folder / "config.json") or {}
    named = str((config.get("architectures") or [""])[0])
    return any((folder / name).is_file() for name in POOLINGS) or named.endswith("Model")


class Embedder:
    """The model in `folder`; `device` and `dtype` are torch's names."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        """Raises InputError for a pooling or a further layer that is not done here."""
        from transformers import AutoModel

        self._mode = _mode(folder)
        modules = files.read_json(folder / "modules.json") or []
        kinds = {str(module.get("type", "")).rpartition(".")[2] for module in modules}
        if kinds - {"Transformer", "Pooling", "Normalize"}:
            raise _not_done(", ".join(sorted(kinds)))
        self._normalised = not modules or "Normalize" in kinds
        self.tokenizer = loading.tokenizer(folder)
        self._model: Any = AutoModel.from_pretrained(
            folder, dtype=getattr(torch, dtype), device_map=device, use_safetensors=True, **loading.SAFE
        )
        self._model.eval().requires_grad_(False)
        own = (files.read_json(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
        context = getattr(self._model.config, "max_position_embeddings", None) or 1 << 17
        offset = self._model.config.pad_token_id + 1 if "roberta" in self._model.config.model_type else 0
        self.context = min(own or context, context - offset)  # RoBERTa counts positions from after the padding's
        self._alone = threading.Lock()

    def answer(self, asked: EmbeddingRequest, model: str) -> bytes:
        """OpenAI's object for a request. Raises Refused for a text that is too long."""
        ids = [list(self.tokenizer(text)["input_ids"]) for text in asked.texts()]
        if max(map(len, ids)) > self.context:
            message = f"A text is longer than the model's {self.context} tokens."
            raise Refused(400, message, "context_length_exceeded", "input")
        with self._alone:
            vectors = self._vectors(ids)
        if asked.dimensions:
            if asked.dimensions > vectors.shape[-1]:
                raise Refused(400, f"The model has {vectors.shape[-1]} dimensions.", "invalid_value", "dimensions")
            vectors = torch.nn.functional.normalize(vectors[:, : asked.dimensions], dim=-1)
        plain = asked.encoding_format != "base64"
        data = [
            {"object": "embedding", "index": place, "embedding": vector.tolist() if plain else _base64(vector)}
            for place, vector in enumerate(vectors)
        ]
        count = sum(map(len, ids))
        usage = {"prompt_tokens": count, "total_tokens": count}
        return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})

    @torch.inference_mode()
    def _vectors(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """[rows, dimensions] in float32, on the processor; rows of about the same length are computed together."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
        found: dict[int, torch.Tensor] = {}
        batch: list[int] = []
        for number, place in enumerate(order):
            batch.append(place)
            following = order[number + 1 : number + 2]
            if not following or len(rows[following[0]]) * (len(batch) + 1) > TOKENS_AT_ONCE:
                found |= dict(zip(batch, self._pooled([rows[place] for place in batch]), strict=True))
                batch = []
        return torch.stack([found[place] for place in range(len(rows))])

    def _pooled(self, rows: Sequence[list[int]]) -> torch.Tensor:
        longest = max(map(len, rows))
        device, pad = self._model.device, self.tokenizer.pad_token_id or 0
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        inside = mask[..., None].bool()
        if self._mode == "mean":
            pooled = states.masked_fill(~inside, 0).sum(1) / mask.sum(1, keepdim=True)
        elif self._mode == "max":
            pooled = states.masked_fill(~inside, -torch.inf).amax(1)
        else:
            places = mask.sum(1) - 1 if self._mode == "lasttoken" else torch.zeros_like(mask[:, 0])
            pooled = states[torch.arange(len(rows), device=device), places]
        return (torch.nn.functional.normalize(pooled, dim=-1) if self._normalised else pooled).cpu()


def _mode(folder: Path) -> str:
    stated: dict[str, Any] = next((found for name in POOLINGS if (found := files.read_json(folder / name))), {})
    modes = [mode for key, mode in _MODES.items() if stated.get(key)] or [str(stated.get("pooling_mode", "mean"))]
    others = [key for key, value in stated.items() if key.startswith("pooling_mode_") and value and key not in _MODES]
    if len(modes) != 1 or others or modes[0] not in _MODES.values():
        raise _not_done(", ".join([*modes, *others]))
    return modes[0]


def _not_done(what: str) -> InputError:
    return InputError(
        _("This engine can't make vectors as this model does: {what}.").format(what=what),
        _("Serve it with vllm, or take a model with one pooling of cls, mean, max or lasttoken."),
    )


def _base64(vector: torch.Tensor) -> str:
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
