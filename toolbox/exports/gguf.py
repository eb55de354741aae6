"""What GGUF can hold: architectures, and the ways to split text that llama.cpp knows; told from JSON files alone.

Facts, none of the code: ggml-org/llama.cpp b-series of gguf 0.19 — `src/llama-model.cpp` (`llama_model_rope_type`),
`src/llama-vocab.cpp` (pre-tokenizers), `docs/gguf.md` of ggml-org/ggml (key names).
"""

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from toolbox import engines, files
from toolbox.config import Home
from toolbox.errors import CorruptError, InputError
from toolbox.i18n import _
from toolbox.models import ModelFacts


class Architecture(msgspec.Struct, frozen=True):
    """How a `model_type` of transformers is written down."""

    name: str
    """`general.architecture`."""
    permuted: bool = False
    """llama.cpp rotates neighbouring numbers of a head, transformers its two halves: rows of q and k change places."""
    norm_plus_one: bool = False
    """Gemma multiplies by 1 + the norm's weight, llama.cpp by what is stored."""
    in_transformers: bool = False
    """Whether transformers 5.23 reads it too (integrations/ggml.py)."""


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", permuted=True, in_transformers=True),
    "mistral": Architecture("llama", permuted=True, in_transformers=True),
    "mixtral": Architecture("llama", permuted=True),
    "qwen2": Architecture("qwen2", in_transformers=True),
    "qwen2_moe": Architecture("qwen2moe"),
    "qwen3": Architecture("qwen3", in_transformers=True),
    "qwen3_moe": Architecture("qwen3moe", in_transformers=True),
    "gemma": Architecture("gemma", norm_plus_one=True),
    "gemma2": Architecture("gemma2", norm_plus_one=True, in_transformers=True),
    "gemma3_text": Architecture("gemma3", norm_plus_one=True, in_transformers=True),
    "phi3": Architecture("phi3", in_transformers=True),
    "granite": Architecture("granite", permuted=True),
    "olmo2": Architecture("olmo2"),
    "smollm3": Architecture("smollm3", permuted=True),
    "starcoder2": Architecture("starcoder2", in_transformers=True),
    "glm4": Architecture("glm4"),
    "seed_oss": Architecture("seed_oss"),
}
"""Each was exported from a small random model, loaded by llama.cpp, and answered alike (docs/verified.md)."""

_BLANKS = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*" + _BLANKS
_UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_LOWER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _BLANKS
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT2 = "GPT-2"
"""Stands for the pattern that tokenizers' ByteLevel brings itself."""


class Splitting(msgspec.Struct, frozen=True):
    """One of llama.cpp's pre-tokenizers, as the patterns of the tokenizer.json that it was made for."""

    name: str
    patterns: tuple[str, ...]
    ignore_merges: bool = False
    """A word that is a token as it stands is taken before any merge is tried."""


SPLITTINGS = (
    Splitting("qwen2", (_WORDS % "",)),
    Splitting("llama-bpe", (_WORDS % "{1,3}",), ignore_merges=True),
    Splitting("smaug-bpe", (_WORDS % "{1,3}",)),
    Splitting("gpt-2", (GPT2,)),
    Splitting("starcoder", (r"\p{N}", GPT2)),
    Splitting("tekken", (f"{_UPPER}|{_LOWER}|\\p{{N}}{_REST}",), ignore_merges=True),
    Splitting("gpt-4o", (f"{_UPPER}{_SUFFIX}|{_LOWER}{_SUFFIX}|\\p{{N}}{{1,3}}{_REST}",)),
    Splitting(
        "qwen35",
        (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
            r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _BLANKS,
        ),
    ),
    Splitting(
        "deepseek-v3",
        (
            r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
            r"| ?[\p{P}\p{S}]+[\r\n]*" + _BLANKS,
        ),
    ),
)  # fmt: skip
"""Exact where a tokenizer.json says just that; else those that split all of some hundred real rows alike."""


def refuse(model: ModelFacts, home: Home) -> None:
    """Raise InputError where GGUF, or llama.cpp, does not know the model's architecture or its kind of tokenizer."""
    if model.model_type not in ARCHITECTURES:
        raise InputError(
            _("{model} is of the architecture {kind}, which this toolbox can't write as GGUF.").format(
                model=model.id, kind=model.model_type
            ),
            _("It can write: {kinds}.").format(kinds=", ".join(ARCHITECTURES)),
        )
    if not ARCHITECTURES[model.model_type].in_transformers and not engines.own_python("llamacpp", home):
        raise InputError(
            _("{model} as GGUF could be loaded again by llama.cpp only, which is not installed here.").format(
                model=model.id
            ),
            _("Install what serves it: {command}").format(command=engines.preparing("llamacpp", home)),
        )
    tokenizer: dict[str, Any] = files.read_json(model.path / "tokenizer.json") or {}
    kind = kind_of(tokenizer)
    if not kind:
        raise InputError(
            _("{model} has a tokenizer of a kind that llama.cpp would garble.").format(model=model.id),
            _("GGUF takes byte-level BPE, or SentencePiece's BPE, from a tokenizer.json."),
        )
    if kind == "gpt2" and not splitting(tokenizer) and not _alike(tokenizer):
        raise InputError(
            _("{model} splits text in a way that llama.cpp does not know; it would garble it.").format(model=model.id),
            _("Take another format, as bnb, or serve the model as it is."),
        )


def kind_of(tokenizer: dict[str, Any]) -> str:
    """`tokenizer.ggml.model`: gpt2 (byte-level BPE) or llama (SentencePiece's BPE, bytes for the rest); else empty."""
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE" or model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return ""
    if any(step.get("type") == "ByteLevel" for step in steps(tokenizer.get("pre_tokenizer"))):
        return "gpt2"
    return "llama" if model.get("byte_fallback") else ""


def steps(part: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, those of a sequence one by one."""
    if not part:
        return []
    inner = part.get("pretokenizers") or part.get("normalizers") if part.get("type") == "Sequence" else None
    return [part] if inner is None else [step for one in inner for step in steps(one)]


def patterns(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """The patterns that a byte-level tokenizer splits by, in order; empty where they are more than patterns."""
    found: list[str] = []
    for step in steps(tokenizer.get("pre_tokenizer")):
        pattern = (step.get("pattern") or {}).get("Regex")
        if step["type"] == "Split" and pattern and step.get("behavior") == "Isolated" and not step.get("invert"):
            found.append(pattern)
        elif step["type"] == "Digits" and step.get("individual_digits"):
            found.append(r"\p{N}")
        elif step["type"] == "ByteLevel" and not step.get("add_prefix_space"):
            found += [GPT2] if step.get("use_regex", True) else []
        else:
            return ()
    return tuple(found)


def splitting(tokenizer: dict[str, Any]) -> Splitting | None:
    """The pre-tokenizer that the tokenizer.json says, to the letter; None where it says none of them."""
    said, ignore = patterns(tokenizer), bool(tokenizer["model"].get("ignore_merges"))
    return next((one for one in SPLITTINGS if one.patterns == said and one.ignore_merges == ignore), None)


def alike(tokenizer: dict[str, Any], texts: Iterable[str]) -> Splitting | None:
    """The first pre-tokenizer that makes the same tokens of every text; None where none does."""
    from tokenizers import Tokenizer

    try:
        own = Tokenizer.from_str(json.dumps(tokenizer))
    except Exception as error:  # the class that tokenizers raises, whatever is wrong
        raise CorruptError(
            _("{path} can't be read: {reason}.").format(path="tokenizer.json", reason=error),
            _("Fetch the model again."),
        ) from error
    wanted = [(text, own.encode(text, add_special_tokens=False).ids) for text in texts]
    for one in SPLITTINGS:
        other = Tokenizer.from_str(json.dumps(_split_by(tokenizer, one)))
        if all(other.encode(text, add_special_tokens=False).ids == ids for text, ids in wanted):
            return one
    return None


def _alike(tokenizer: dict[str, Any]) -> Splitting | None:
    return alike(tokenizer, probes())


def probes() -> list[str]:
    """Chinese and English texts that are always here: every row of the embedded data sets."""
    from toolbox import embedded

    return [line for path in embedded.DATASETS.values() for line in path.read_text("utf-8").splitlines()]


def _split_by(tokenizer: dict[str, Any], one: Splitting) -> dict[str, Any]:
    """The tokenizer with another pre-tokenizer."""
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in one.patterns
        if pattern != GPT2
    ]
    bytes_ = {
        "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": GPT2 in one.patterns,
    }  # fmt: skip
    made = {"type": "Sequence", "pretokenizers": [*splits, bytes_]}
    model = {**tokenizer["model"], "ignore_merges": one.ignore_merges}
    return {**tokenizer, "pre_tokenizer": made, "model": model}
