"""A tokenizer as GGUF's `tokenizer.ggml.*`: tokens, types, merges or scores, special ids, and how text is split."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf import GGUFWriter, TokenType

from toolbox import loading, model_files, templates
from toolbox.errors import InputError
from toolbox.exports import gguf as known
from toolbox.i18n import _

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNREACHED = -1e6
"""The score of a piece that no merge makes: below every one that a merge does."""


def add(writer: GGUFWriter, source: Path, vocab_size: int, texts: Iterable[str]) -> list[str]:
    """Write the tokenizer in `source`; returns what llama.cpp does otherwise with it, in sentences.

    `texts`: rows that must be tokenised alike where the tokenizer's own way to split is not one of llama.cpp's by name.
    Raises InputError where none of them splits alike.
    """
    file = model_files.json_object(source / "tokenizer.json")
    tokenizer = loading.tokenizer(source)
    kind = known.kind_of(file)
    tokens, types = _tokens(file, vocab_size)
    writer.add_tokenizer_model(kind)
    notes = _normalised(file) if kind == "gpt2" else []
    if kind == "gpt2":
        name, told = _splitting(file, texts)
        writer.add_tokenizer_pre(name)
        writer.add_token_merges([" ".join(pair) for pair in _merges(file)])
        notes += told
    else:
        writer.add_tokenizer_pre("default")
        writer.add_token_scores(_scores(file, tokens))
        writer.add_add_space_prefix(_prefixes_a_space(file))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    _add_special(writer, tokenizer, source)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    return notes


def _tokens(file: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """(tokens, types) by id, up to `vocab_size`: embeddings are often padded beyond the last token."""
    ids = {index: text for text, index in file["model"]["vocab"].items()}
    added = {token["id"]: token for token in file.get("added_tokens", [])}
    size = max(vocab_size, 1 + max(ids.keys() | added.keys()))
    unknown = file["model"].get("unk_token")
    tokens: list[str] = []
    types: list[int] = []
    for index in range(size):
        text = added[index]["content"] if index in added else ids.get(index)
        tokens.append(f"[PAD{index}]" if text is None else text)
        types.append(_type(text, added.get(index), unknown, bool(file["model"].get("byte_fallback"))))
    return tokens, types


def _type(text: str | None, added: dict[str, Any] | None, unknown: str | None, byte_fallback: bool) -> TokenType:
    if text is None:
        return TokenType.UNUSED
    if text == unknown and byte_fallback:
        return TokenType.UNKNOWN
    if added:
        return TokenType.CONTROL if added.get("special") else TokenType.USER_DEFINED
    if byte_fallback and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return TokenType.BYTE
    return TokenType.NORMAL


def _merges(file: dict[str, Any]) -> list[tuple[str, str]]:
    """Pairs in the order of their rank; older files keep each as one text."""
    return [
        (left, right)
        for left, right in (
            merge if isinstance(merge, list) else merge.split(" ", 1) for merge in file["model"]["merges"]
        )
    ]


def _scores(file: dict[str, Any], tokens: list[str]) -> list[float]:
    """SentencePiece's scores order its pieces as the merges that make them are ordered, and only order counts."""
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(file)):
        ranks.setdefault(left + right, rank)
    return [-float(ranks[token]) if token in ranks else UNREACHED for token in tokens]


def _prefixes_a_space(file: dict[str, Any]) -> bool:
    """Whether a text's first word is taken as if a space stood before it."""
    parts = [*known.steps(file.get("normalizer")), *known.steps(file.get("pre_tokenizer"))]
    return any(
        part["type"] == "Prepend" or (part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never")
        for part in parts
    )


def _splitting(file: dict[str, Any], texts: Iterable[str]) -> tuple[str, list[str]]:
    if exact := known.splitting(file):
        return exact.name, []
    tried = [*known.probes(), *texts]
    near = known.alike(file, tried)
    if near is None:
        raise InputError(
            _("The tokenizer splits text in a way that llama.cpp does not know; it would garble it."),
            _("Take another format, as bnb, or serve the model as it is."),
        )
    told = _("llama.cpp splits text by its pre-tokenizer {name}, which made the same tokens of all {count} rows tried.")
    return near.name, [told.format(name=near.name, count=len(tried))]


def _normalised(file: dict[str, Any]) -> list[str]:
    kinds = [step["type"] for step in known.steps(file.get("normalizer"))]
    return [
        _("The tokenizer first brings text into Unicode's form {kind}, which llama.cpp leaves out.").format(kind=kind)
        for kind in kinds
    ]


def _add_special(writer: GGUFWriter, tokenizer: "PreTrainedTokenizerBase", source: Path) -> None:
    """Beginning, end, end of a turn: what llama.cpp stops at, and whether it puts a beginning before each text."""
    ends = templates.ends_of(source)
    ends = [*(ends if isinstance(ends, list) else [] if ends is None else [ends])]
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else next(iter(ends), None)
    turn = templates.answer_end(tokenizer)
    for put, index in (
        (writer.add_bos_token_id, tokenizer.bos_token_id),
        (writer.add_eos_token_id, end),
        (writer.add_eot_token_id, turn if turn is not None else next((one for one in ends if one != end), None)),
        (writer.add_unk_token_id, tokenizer.unk_token_id),
        (writer.add_pad_token_id, tokenizer.pad_token_id),
    ):
        if isinstance(index, int):
            put(index)
    begun = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begun and tokenizer.bos_token_id is not None)
    writer.add_add_eos_token(False)
