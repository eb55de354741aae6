"""Likelihoods of given tokens from a loaded model; what rows begin with alike is computed once (`evaluate`)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from toolbox import inference
from toolbox.inference import BATCH_SIZE, Conversation, Keep, Watch, unkept, unwatched
from toolbox.training import attention, batches, layouts, trees

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LOGITS_BYTES = 1 << 30
"""At most this much for the logits of one batch: at 150k tokens of vocabulary they outgrow the model."""
TOKENS = 8192
"""Of a batch of trees, at most; what all its rows begin with is computed once in each."""
KEYS_BYTES = 1 << 29
"""At most about this much for the keys and values that attention copies of one layer, for each row of a batch."""
WORTH = 0.7
"""Trees are taken where they have at most this share of the rows' tokens. Else rows go by length, as others do."""
PROOF_TOKENS = 48

Row = tuple[list[int], int]
"""(ids, from where on, at least 1, they are to be told)."""
ScoredTokens = list[tuple[float, bool]]
"""Of each token ln p, and whether none was likelier."""
Logits = tuple[torch.Tensor, list[list[int]]]
"""[positions, vocabulary], and the positions that foretell each row's tokens."""
Cut = Callable[[int, int], int]
"""(where a batch of trees begins, how many tokens it may have) → where it ends."""


def token_log_likelihoods(
    model: "PreTrainedModel", rows: Sequence[list[int]], batch_size: int = BATCH_SIZE, watch: Watch = unwatched
) -> list[list[float]]:
    """ln p(row[i] | row[:i]) for each i from 1: a list one shorter than each row."""
    found = scored_tokens(model, [(ids, 1) for ids in rows], batch_size, watch)
    return [[value for value, _best in values] for values in found]


@torch.inference_mode()
def scored_tokens(
    model: "PreTrainedModel",
    rows: Sequence[Row],
    batch_size: int = BATCH_SIZE,
    watch: Watch = unwatched,
    known: Mapping[int, ScoredTokens] | None = None,
    keep: Keep = unkept,
) -> list[ScoredTokens]:
    """(ln p(ids[i] | ids[:i]), whether no token is likelier) for each i from `begin` of each row.

    A row may be one longer than what the model can see: its last token is only foretold, and rows that differ in it
    alone, as the letters of a multiple choice, are computed once. So is what rows begin with alike, where the model is
    proven to make the same of it. `batch_size` is of rows that go by length; `known` and `keep` are as `in_batches` has
    them.
    """
    with _sharing(model, rows) as shared:
        if shared:
            return inference.in_order(
                rows, *shared, lambda batch: _told(_in_trees(model, batch), batch), TOKENS, watch, known, keep
            )
        longest = max((len(ids) for ids, _begin in rows), default=1)
        kept = longest - min((begin for _ids, begin in rows), default=1) + 1
        size = max(1, min(batch_size, _positions(model) // kept))
        return inference.in_batches(
            rows, lambda row: len(row[0]), lambda batch: _told(_padded(model, batch), batch), size, watch, known, keep
        )


def _positions(model: Any) -> int:
    """How many have room for their logits at once."""
    return LOGITS_BYTES // (4 * int(model.config.get_text_config().vocab_size))


def _told(logits: Logits, batch: Sequence[Row]) -> list[ScoredTokens]:
    values, places = logits[0].float(), logits[1]
    norms, bests = values.logsumexp(-1), values.amax(-1)
    flat = torch.tensor([place for own in places for place in own], dtype=torch.long, device=values.device)
    targets = torch.tensor([token for ids, begin in batch for token in ids[begin:]], device=values.device).long()
    said = values[flat, targets]
    told = iter(zip((said - norms[flat]).tolist(), (said >= bests[flat]).tolist(), strict=True))
    return [[next(told) for _place in own] for own in places]


def _padded(model: Any, batch: Sequence[Row]) -> Logits:
    """A row each, but once for rows that are seen alike; padding is on the right, where a causal model can't see it."""
    seen: dict[tuple[int, ...], int] = {}
    for row, _begin in batch:
        seen.setdefault(tuple(row[:-1]), len(seen))
    longest = max(1, *map(len, seen))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in seen], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in seen], device=model.device)
    kept = max(1, longest - min(begin for _ids, begin in batch) + 1)
    told = {"logits_to_keep": kept} if layouts.takes_flattened(_base(model)) else {}
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **told).logits[:, -kept:]
    firsts = [kept * seen[tuple(row[:-1])] + begin - 1 - (longest - kept) for row, begin in batch]
    places = [list(range(at, at + len(row) - begin)) for at, (row, begin) in zip(firsts, batch, strict=True)]
    return logits.flatten(0, 1), places


def _in_trees(model: Any, batch: Sequence[Row]) -> Logits:
    """All rows in one without padding, what they begin with alike once; logits are made where they are asked for."""
    numbers: dict[tuple[int, ...], int] = {}
    for ids, _begin in batch:
        if len(ids) > 1:
            numbers.setdefault(tuple(ids[:-1]), len(numbers))
    forest = trees.branching(list(numbers))
    ids, positions, own = batches.lay_out(list(numbers), forest)
    wanted = [own[numbers[tuple(ids[:-1])]][begin - 1 :] if len(ids) > begin else [] for ids, begin in batch]
    kept = {place: number for number, place in enumerate(sorted({place for places in wanted for place in places}))}
    device = model.device
    logits = model(
        input_ids=torch.tensor([ids], device=device), position_ids=torch.tensor([positions], device=device),
        logits_to_keep=torch.tensor(list(kept), device=device), nodes=tuple(forest.nodes), use_cache=False,
    ).logits[0]  # fmt: skip
    return logits, [[kept[place] for place in places] for places in wanted]


@contextmanager
def _sharing(model: Any, rows: Sequence[Row]) -> Iterator[tuple[list[int], Cut] | None]:
    """While entered, the model attends within trees; gives the order of the rows, and how they are cut into batches.

    None, and the model as it was, where too little would be saved, or logits be others than each row's alone.
    """
    base, order = _base(model), sorted(range(len(rows)), key=lambda place: rows[place][0])
    ordered = [rows[place] for place in order]
    shared = [0, *(_shared(one, other) for (one, _), (other, _) in pairwise(ordered))][: len(ordered)]
    own = [len(ids) - 1 - known for (ids, _begin), known in zip(ordered, shared, strict=True)]
    apart = sum(len(ids) - 1 for (ids, _begin), new in zip(ordered, own, strict=True) if new)
    together, longest = sum(own), max((len(ids) - 1 for ids, _begin in ordered), default=0)
    if together >= WORTH * apart or inference.adds_tokens(model) or not layouts.may_flatten(base, longest):
        yield None
        return
    before = base.config._attn_implementation
    try:
        if _proven(model, base, ordered[0][0][:-1], ordered[-1][0][:-1]):
            yield order, _cut(model, ordered, shared)
        else:
            attention.attend_by(base, before)
            yield None
    finally:
        attention.attend_by(base, before)


def _cut(model: Any, rows: Sequence[Row], shared: Sequence[int]) -> Cut:
    """Batches of rows that begin with so many tokens as the one before; their logits and keys are bounded too."""
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    keys_most, logits_most = KEYS_BYTES // (2 * width * model.dtype.itemsize), _positions(model)

    def cut(begin: int, size: int) -> int:
        tokens = logits = keys = 0
        for place in range(begin, len(rows)):
            ids, first = rows[place]
            tokens += len(ids) - (shared[place] if place > begin else 0)
            logits += len(ids) - first
            keys += len(ids)
            if place > begin and max(tokens / TOKENS, logits / logits_most, keys / keys_most) > size / TOKENS:
                return place
        return len(rows)

    return cut


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens a model sees alike of both: their last ones are only foretold."""
    return min(trees.common((one, other)), len(one) - 1, len(other) - 1)


def _proven(model: Any, base: Any, first: list[int], last: list[int]) -> bool:
    """Turn to trees; whether their logits are those of each row alone, of short rows that begin and end alike."""
    first, last = first[:PROOF_TOKENS], last[-PROOF_TOKENS:]
    proof = [([*ids, 0], 1) for ids in (first, last, [*first[: len(first) // 2 + 1], *last[len(last) // 2 :]]) if ids]
    alone = torch.cat([_padded(model, [row])[0] for row in proof])
    attention.attend_by(base, attention.TREES)
    with suppress(attention.NodesLost):
        logits, places = _in_trees(model, proof)
        found = torch.cat([logits[own] for own in places])
        return layouts.alike(found.float(), alone.float(), str(alone.dtype).removeprefix("torch."))
    return False


def _base(model: Any) -> Any:
    """The transformers model within an adapter's."""
    return getattr(model, "get_base_model", lambda: model)()


def choice_rows(
    tokenizer: "PreTrainedTokenizerBase", questions: Sequence[tuple[Conversation, str, Sequence[str]]]
) -> list[Row]:
    """(ids, from where on they count) of each option of each question, one after another.

    A tokenizer may join an option's beginning to the prefix. So options are scored from the first token in which they
    differ: what comes before is the same for all, and comparing them needs it not.
    """
    rows = []
    for conversation, prefix, options in questions:
        variants = [inference.prompt_ids(tokenizer, conversation, prefix + option) for option in options]
        begin = min(trees.common(variants), min(map(len, variants)) - 1)
        rows += [(ids, begin) for ids in variants]
    return rows


def choice_log_likelihoods(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    questions: Sequence[tuple[Conversation, str, Sequence[str]]],
    batch_size: int = BATCH_SIZE,
    watch: Watch = unwatched,
) -> list[list[float]]:
    """ln p(option | conversation, prefix) of each option of each (conversation, prefix, options)."""
    found = scored_tokens(model, choice_rows(tokenizer, questions), batch_size, watch)
    return summed(found, questions)


def summed(
    scored: Sequence[ScoredTokens], questions: Sequence[tuple[Conversation, str, Sequence[str]]]
) -> list[list[float]]:
    """The sums of `choice_rows`' tokens, by question."""
    rows = iter(scored)
    return [[math.fsum(value for value, _best in next(rows)) for _option in options] for *_, options in questions]
