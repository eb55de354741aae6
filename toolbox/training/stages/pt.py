"""Continued pre-training: the likelihood of whole documents, in pieces. `finetune --stage pt`."""

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from toolbox.datasets import Text
from toolbox.plan import FinetunePlan
from toolbox.training.rows import Encoded, Sample
from toolbox.training.stages import Stage
from toolbox.training.stages.sft import loss

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_PIECE = 2
"""Of a single token nothing is predicted."""


def make(plan: FinetunePlan) -> Stage:
    return Stage(loss, encode=encode, weighed_by="label_tokens")


def encode(dataset: str, rows: Iterable[Text], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Encoded:
    """Each document, ended by the end-of-sequence token, in pieces of at most `max_length` tokens; none is cut off.

    Pieces do not see each other, so there is no need to join short documents: a flattened batch has no padding.
    Of a last piece of a single token nothing would be learnt, so the one before it gives it another.
    """
    encoded = Encoded([])
    for row in rows:
        ids = list(tokenizer(row.text)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        if len(ids) < MIN_PIECE:
            encoded.dropped += 1
            continue
        bounds = [*range(0, len(ids), max_length), len(ids)]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < MIN_PIECE:
            bounds[-2] -= 1
        encoded.samples += [Sample(dataset, row.number, ids[a:b], ids[a:b]) for a, b in pairwise(bounds)]
        encoded.split += len(bounds) > 2
    return encoded
