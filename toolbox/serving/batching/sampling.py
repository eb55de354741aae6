"""The next token of each row, all rows at once: each with its own settings, and draws that no neighbour changes."""

import random
import secrets
from typing import TYPE_CHECKING

import msgspec
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toolbox.serving.batching.rows import Row

HEAD = 256
"""Of the likeliest tokens: whoever is drawn is mostly among them, and finding them is cheaper than sorting all."""


class Settings(msgspec.Struct, kw_only=True, frozen=True):
    """How a row is written, by OpenAI's and vLLM's names."""

    temperature: float = 0.0
    """0: the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    """Both count what was written, not the prompt."""
    repetition_penalty: float = 1.0
    """Counts the prompt too, as transformers does."""
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    max_tokens: int = 16
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    """How many alternatives to tell beside each token's own; None: none of it."""

    def draws(self, number: int) -> random.Random:
        """What the answer `number` to a request draws with."""
        seed = secrets.randbits(64) if self.seed is None else self.seed
        return random.Random(f"{seed} {number}")


class Chosen(msgspec.Struct, frozen=True):
    """A token, and where they were asked for, ln p of it and of the likeliest, before temperature and penalties."""

    token: int
    logprob: float | None = None
    likeliest: list[tuple[int, float]] = []


def choose(logits: torch.Tensor, rows: "Sequence[Row]") -> list[Chosen | None]:
    """The next token of each row by its logits [rows, vocabulary] in float32; None where they hold no numbers."""
    told = _logprobs(logits, rows)
    scores = logits.clone() if any(_is_edited(row) for row in rows) else logits
    for score, row in zip(scores, rows, strict=True):
        if _is_edited(row):
            _edit(score, row)
    tokens: list[int] = scores.argmax(-1).tolist()
    broken = scores.amax(-1).isnan().tolist()
    drawn = [place for place, row in enumerate(rows) if row.settings.temperature and not broken[place]]
    if drawn:
        for place, token in zip(drawn, _draw(scores[drawn], [rows[place] for place in drawn]), strict=True):
            tokens[place] = token
    return [
        None if broken[place] else Chosen(token, *_told(told[place], token))
        for place, token in enumerate(tokens)
    ]  # fmt: skip


def _is_edited(row: "Row") -> bool:
    ask = row.settings
    return bool(
        ask.presence_penalty or ask.frequency_penalty or ask.repetition_penalty != 1.0 or ask.logit_bias
        or row.count < ask.min_tokens or row.guide
    )  # fmt: skip


def _edit(score: torch.Tensor, row: "Row") -> None:
    """Penalties, biases, the least length and the grammar, in place: OpenAI's, and the repetition penalty of
    arXiv:1909.05858."""
    ask = row.settings
    if ask.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*row.ids}), device=score.device)
        values = score[seen]
        score[seen] = torch.where(values < 0, values * ask.repetition_penalty, values / ask.repetition_penalty)
    if row.count and (ask.presence_penalty or ask.frequency_penalty):
        tokens, counts = torch.tensor(row.written).unique(return_counts=True)
        penalty = ask.presence_penalty + ask.frequency_penalty * counts
        score[tokens.to(score.device)] -= penalty.to(score.device, score.dtype)
    known = {token: bias for token, bias in ask.logit_bias.items() if 0 <= token < len(score)}
    if known:
        score[torch.tensor([*known], device=score.device)] += torch.tensor([*known.values()], device=score.device)
    if row.count < ask.min_tokens:
        score[torch.tensor([*row.ends], device=score.device, dtype=torch.long)] = -torch.inf
    if row.guide:
        row.guide.mask(score)


def _draw(scores: torch.Tensor, rows: "Sequence[Row]") -> list[int]:
    """A token of each row by its temperature, top_k, top_p and min_p, in this order as transformers has them."""
    asks = [row.settings for row in rows]
    scaled = scores.double() / torch.tensor([ask.temperature for ask in asks], device=scores.device)[:, None]
    uniform = [row.draws.random() for row in rows]
    head = min(HEAD, scaled.shape[-1])
    tokens = _among(scaled, head, asks, uniform)
    for place, token in enumerate(tokens):
        if token is None:
            (tokens[place],) = _among(scaled[place : place + 1], scaled.shape[-1], asks[place : place + 1], uniform[place : place + 1])  # noqa: E501  # fmt: skip
    return [token or 0 for token in tokens]


def _among(scaled: torch.Tensor, head: int, asks: list[Settings], uniform: list[float]) -> list[int | None]:
    """By inversion of the distribution function of the `head` likeliest; None where those don't decide.

    One uniform number a token, so a neighbour's rounding can move a draw only across a border.
    """
    values, tokens = scaled.topk(head)
    likely = (values - scaled.logsumexp(-1, keepdim=True)).exp().cpu()
    reach = likely.cumsum(-1)
    found: list[int | None] = []
    for place, ask in enumerate(asks):
        p, mass, all_there = likely[place], reach[place], head == scaled.shape[-1]
        count = min(ask.top_k or head, head)
        limited = all_there or 0 < ask.top_k <= head
        total = float(mass[count - 1]) if limited and ask.top_k else 1.0
        if ask.top_p < 1:
            within = int((mass[:count] - p[:count] < ask.top_p * total).sum())
            limited, count = limited or float(mass[count - 1]) >= ask.top_p * total, max(1, min(within, count))
        if ask.min_p:
            within = int((p[:count] >= ask.min_p * p[0]).sum())
            limited, count = limited or within < count, max(1, within)
        target = uniform[place] * (float(mass[count - 1]) if limited else 1.0)
        index = int(torch.searchsorted(mass[:count], target, right=True))
        found.append(int(tokens[place, min(index, count - 1)]) if limited or index < count else None)
    return found


def _logprobs(logits: torch.Tensor, rows: "Sequence[Row]") -> list[tuple[torch.Tensor, int] | None]:
    """ln p of each token, for the rows that asked."""
    return [
        (logit.log_softmax(-1), row.settings.logprobs) if row.settings.logprobs is not None else None
        for logit, row in zip(logits, rows, strict=True)
    ]


def _told(told: tuple[torch.Tensor, int] | None, token: int) -> tuple[float | None, list[tuple[int, float]]]:
    if told is None:
        return None, []
    values, tokens = told[0].topk(min(told[1], len(told[0])))
    return float(told[0][token]), list(zip(tokens.tolist(), values.tolist(), strict=True))
