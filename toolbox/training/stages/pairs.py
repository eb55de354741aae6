"""Pairs: a prompt with a chosen and a rejected answer, as DPO and its kin, and the reward model, take them."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import torch

from toolbox.datasets import Conversation, Preference
from toolbox.training import rows
from toolbox.training.rows import IGNORED, Encoded, Sample
from toolbox.training.step import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Pair(msgspec.Struct, frozen=True):
    """Both answers after the same prompt; labels are on the answers only."""

    chosen: Sample
    rejected: Sample

    @property
    def dataset(self) -> str:
        return self.chosen.dataset

    @property
    def number(self) -> int:
        return self.chosen.number

    @property
    def size(self) -> int:
        return self.chosen.size + self.rejected.size

    @property
    def sequences(self) -> list[Sample]:
        return [self.chosen, self.rejected]

    @property
    def teaches(self) -> bool:
        return self.chosen.teaches and self.rejected.teaches

    def cut(self, max_length: int) -> "Pair":
        return Pair(self.chosen.cut(max_length), self.rejected.cut(max_length))


def encode(
    dataset: str, preferences: Iterable[Preference], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoded:
    """Preferences as pairs; where cutting leaves one of the answers without a token, the pair is dropped."""
    return rows.encode(dataset, preferences, tokenizer, max_length, encode_pair)


def encode_pair(dataset: str, row: Preference, tokenizer: "PreTrainedTokenizerBase") -> Pair:
    chosen, rejected = (
        last_answers(
            rows.encode_row(dataset, Conversation(row.number, [*row.prompt, *turns], row.tools), tokenizer),
            sum(turn["role"] == "assistant" for turn in turns),
        )
        for turns in (row.chosen, row.rejected)
    )
    return Pair(chosen, rejected)


def last_answers(sample: Sample, answers: int = 1) -> Sample:
    """`sample` with labels on its last `answers` answers only: those before belong to the prompt."""
    labels = list(sample.labels)
    for place in reversed(range(len(labels))):
        if not answers:
            labels[place] = IGNORED
        elif labels[place] != IGNORED and (place == 0 or labels[place - 1] == IGNORED):
            answers -= 1
    return Sample(sample.dataset, sample.number, sample.input_ids, labels)


def sides(pairs: Sequence[Pair]) -> list[Sample]:
    """All chosen answers, then all rejected ones."""
    return [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]


def preferred(chosen: torch.Tensor, rejected: torch.Tensor) -> dict[str, torch.Tensor]:
    """The figures of rewards, [pairs] each, under TRL's names."""
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }


def mean_logps(forward: Forward, items: Sequence[Pair]) -> tuple[torch.Tensor, torch.Tensor]:
    """(chosen, rejected): the mean log-probability a token of each answer, [pairs] each."""
    means = torch.stack([answer.mean() for answer in forward.token_logps(sides(items))])
    chosen, rejected = means.chunk(2)
    return chosen, rejected
