"""A model made ready to serve: loaded, its batches proven, room for keys and values measured out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from toolbox import files, loading, processor, templates
from toolbox.serving.batching import toolcalls
from toolbox.serving.batching.adapters import Adapters
from toolbox.serving.batching.alone import OneByOne
from toolbox.serving.batching.attention import StepLost
from toolbox.serving.batching.guided import Guides
from toolbox.serving.batching.model import Flattened, may_batch
from toolbox.serving.batching.packed import pack
from toolbox.serving.batching.pool import Pool
from toolbox.serving.batching.rows import Row, Told
from toolbox.serving.batching.sampling import Settings
from toolbox.serving.batching.scheduler import Scheduler
from toolbox.serving.batching.texts import Text
from toolbox.serving.log import log
from toolbox.training.attention import attend_by
from toolbox.training.layouts import alike

ROWS = {"cpu": 32, "mps": 32, "cuda": 64}
WAITING = 256
KEPT_BYTES = 128 << 20
"""On a processor, for keys and values of rows that are done; half of the room elsewhere, where it is taken anyway."""
SHARE = {"cpu": 0.5, "mps": 0.5, "cuda": 0.85}
"""Of free memory, for keys and values at most. A processor's pages are taken only once they are written."""
PROOF_TOKENS = (5, 23, 48)


class Voice(msgspec.Struct, frozen=True):
    """How a model, or one of its adapters, is spoken with."""

    tokenizer: Any
    ends: list[int]
    settings: Settings
    """What its generation_config.json asks for where a request doesn't."""
    guides: Guides
    style: toolcalls.Style


class Engine(msgspec.Struct, frozen=True):
    scheduler: Scheduler
    voices: dict[str, Voice]
    """By the adapter's name; "" is the model alone."""
    context: int
    """Tokens that a row may have at most."""
    batched: bool


def load(folder: Path, adapters: dict[str, Path], dtype: str, device: str) -> Engine:
    """The causal language model in `folder` with its adapters. `dtype` and `device` are torch's names."""
    voices = {name: _voice(folder, path) for name, path in {"": None, **adapters}.items()}
    tuned, model = _proven(folder, adapters, dtype, device)
    limit = getattr(tuned.base.config.get_text_config(), "max_position_embeddings", None) or 1 << 17
    if model is None:
        log("one_by_one", model=type(tuned.base).__name__)
        return Engine(OneByOne(tuned, waiting=WAITING), voices, limit, False)
    kind = torch.device(device).type
    bytes_each = _bytes_each_token(model)
    tokens = min(ROWS[kind] * limit, max(1, int(_free(kind) * SHARE[kind]) // bytes_each))
    kept = min(tokens // 2, KEPT_BYTES // bytes_each if kind == "cpu" else tokens)
    log("batched", model=type(tuned.base).__name__, tokens=tokens, bytes_each=bytes_each)
    scheduler = Scheduler(model, Pool(tokens, kept), rows=ROWS[kind], waiting=WAITING)
    return Engine(scheduler, voices, min(limit, tokens), True)


def _proven(folder: Path, adapters: dict[str, Path], dtype: str, device: str) -> tuple[Adapters, Flattened | None]:
    """The model with its adapters, and what computes its batches; None where those don't come out the same."""
    base = _base(folder, dtype, device)
    if not may_batch(base):
        return Adapters(base, adapters), None
    prompts = _prompts(base)
    expected = _plain(base, prompts)
    before = base.config._attn_implementation
    tuned = Adapters(base, adapters)
    packs = device == "cpu" and tuned.may_pack
    if packs and pack(base) and _same(Flattened(tuned), prompts, expected, dtype):
        return tuned, Flattened(tuned)
    if packs:
        base = _base(folder, dtype, device)
        tuned = Adapters(base, adapters)
    if _same(Flattened(tuned), prompts, expected, dtype):
        return tuned, Flattened(tuned)
    attend_by(base, before)
    return tuned, None


def _base(folder: Path, dtype: str, device: str) -> Any:
    return loading.base_model(folder, dtype, device).eval().requires_grad_(False)


def _prompts(base: Any) -> list[list[int]]:
    """A few short rows, of which one begins like another."""
    vocabulary = base.config.get_text_config().vocab_size
    made = [[(7 + 31 * place * (place + number)) % vocabulary for place in range(size)] for number, size in enumerate(PROOF_TOKENS)]  # noqa: E501  # fmt: skip
    made[2][:16] = made[1][:16]
    return made


@torch.inference_mode()
def _plain(base: Any, prompts: list[list[int]]) -> torch.Tensor:
    """The logits after each prompt, by itself, [prompts, vocabulary]."""
    rows = [base(input_ids=torch.tensor([ids], device=base.device), use_cache=False) for ids in prompts]
    return torch.stack([row.logits[0, -1].float() for row in rows])


@torch.inference_mode()
def _same(model: Flattened, prompts: list[list[int]], expected: torch.Tensor, dtype: str) -> bool:
    """Whether a flattened batch's logits are those of each row alone: read in two pieces, the second beside others."""
    pool = Pool(sum(map(len, prompts)) + 64, 0)
    rows = [_silent(ids) for ids in prompts]
    for row in rows:
        row.region = pool.take(row.ids, row.need, "")
    try:
        for part in (0, 1):
            steps = []
            for row in rows:
                assert row.region is not None
                known = len(row.region.ids)
                steps.append((row, row.ids[known : len(row.ids) if part else len(row.ids) - 2]))
            logits = model.logits(pool, steps)
            for row, ids in steps:
                assert row.region is not None
                row.region.ids += ids
    except (StepLost, TypeError, AttributeError, RuntimeError, ValueError, KeyError) as error:
        log("not_batched", reason=type(error).__name__)
        return False
    found = [scores for scores in logits if scores is not None]
    return len(found) == len(prompts) and alike(torch.stack(found), expected, dtype)


def _silent(ids: list[int]) -> Row:
    def tell(row: Row, told: Told) -> None: ...

    return Row(ids, Settings(max_tokens=1), ends=[], text=Text(None), tell=tell)


@torch.inference_mode()
def _bytes_each_token(model: Flattened) -> int:
    pool, row = Pool(2, 0), _silent([1, 2])
    row.region = pool.take(row.ids, 2, "")
    model.logits(pool, [(row, row.ids)])
    return pool.bytes


def _free(kind: str) -> int:
    """Bytes of the device's memory that nobody has."""
    if kind == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    if kind == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return processor.memory(Path("/"))[1]


def dtype_of(folder: Path, device: str) -> str:
    """The model's own; float16 is no arithmetic for a processor."""
    config = files.read_json(folder / "config.json") or {}
    text = config.get("text_config") or {}
    named = str(next((c[k] for c in (config, text) for k in ("dtype", "torch_dtype") if c.get(k)), "float32"))
    return "float32" if device == "cpu" and named == "float16" else named


def _voice(folder: Path, adapter: Path | None) -> Voice:
    tokenizer = loading.tokenizer(folder, adapter)
    asked: dict[str, Any] = {}
    for path in (folder, adapter):
        asked |= (files.read_json(path / "generation_config.json") if path else None) or {}
    ends = templates.stops(tokenizer, asked.get("eos_token_id"))
    template = str(tokenizer.get_chat_template()) if tokenizer.chat_template else ""
    return Voice(tokenizer, ends, _settings(asked), Guides(tokenizer, ends), toolcalls.Style.of(template))


def _settings(asked: dict[str, Any]) -> Settings:
    """A generation_config.json's, as far as it samples."""
    sampled = asked.get("do_sample", False)
    names: Sequence[str] = ("temperature", "top_p", "top_k", "min_p") if sampled else ()
    given = {name: asked[name] for name in (*names, "repetition_penalty") if asked.get(name) is not None}
    return Settings(**({"temperature": 1.0} if sampled else {}) | given)
