"""Continued pre-training: the likelihood of whole documents, in pieces. `finetune --stage pt`."""

from collections.abc import Iterable
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
    """
    encoded = Encoded([])
    for row in rows:
        ids = list(tokenizer(row.text)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        pieces = [ids[begin : begin + max_length] for begin in range(0, len(ids), max_length)]
        kept = [Sample(dataset, row.number, piece, piece) for piece in pieces if len(piece) >= MIN_PIECE]
        encoded.samples += kept
        encoded.dropped += not kept
    return encoded
