"""KTO: answers that are wanted, or not, each by itself. `finetune --stage kto`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec
import torch

from toolbox.datasets import Conversation, Labelled
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.stages import Kto
from toolbox.training import rows
from toolbox.training.rows import IGNORED, Encoded, Sample
from toolbox.training.stages import Stage, Totals, count, losses
from toolbox.training.stages.pairs import last_answers
from toolbox.training.stages.reference import Reference
from toolbox.training.step import Forward, Outcome
from toolbox.training.store import Items

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Judged(msgspec.Struct, frozen=True):
    """An answer, whether it is wanted, and another row's answer to the same prompt, which only the KL needs."""

    answer: Sample
    wanted: bool
    mismatched: Sample

    @property
    def dataset(self) -> str:
        return self.answer.dataset

    @property
    def number(self) -> int:
        return self.answer.number

    @property
    def size(self) -> int:
        return self.answer.size

    @property
    def sequences(self) -> list[Sample]:
        return [self.answer, self.mismatched]

    @property
    def teaches(self) -> bool:
        return self.answer.teaches

    def cut(self, max_length: int) -> "Judged":
        return Judged(self.answer.cut(max_length), self.wanted, self.mismatched.cut(max_length))


def make(plan: FinetunePlan) -> Stage:
    """The reference knows every answer, and every mismatched one where the loss takes a KL."""
    options = plan.options if isinstance(plan.options, Kto) else Kto()
    reference = Reference(plan)
    takes_kl = options.loss_type == "kto"

    def known(items: Sequence[Judged]) -> list[Sample]:
        mismatched = [item.mismatched for item in items] if takes_kl else []
        return [*(item.answer for item in items), *mismatched]

    def prepare(forward: Forward, items: Items, run: Run, reporter: Reporter) -> None:
        reference.prepare(forward, items, known, run, reporter)

    def totals(forward: Forward, micro_batches: Sequence[Sequence[Judged]]) -> Totals:
        """The reference point, max(0, mean log π/π_ref of mismatched answers): arXiv:2402.01306, section 4.1.

        It is taken over the whole effective batch: over a micro-batch of one row it would mean nothing.
        """
        if not takes_kl:
            return count(forward, micro_batches)
        ratios = []
        with torch.no_grad():
            for items in micro_batches:
                mismatched = [item.mismatched for item in items]
                policy = forward.logps(mismatched)
                ratios.append(policy - reference.logps(mismatched, like=policy))
        counted = count(forward, micro_batches)
        return Totals(counted.rows, counted.label_tokens, kl=torch.cat(ratios).mean().clamp(min=0))

    def loss(forward: Forward, items: Sequence[Judged], totals: Totals) -> Outcome:
        """The mean over the effective batch's rows; rewards are beta log π/π_ref."""
        answers = [item.answer for item in items]
        policy = forward.logps(answers)
        ratios = policy - reference.logps(answers, like=policy)
        wanted = torch.tensor([item.wanted for item in items], device=policy.device)
        kl = torch.zeros((), device=policy.device) if totals.kl is None else totals.kl
        value = losses.kto(ratios, wanted, kl, options).sum() / totals.rows
        rewards = options.beta * ratios.detach()
        return Outcome(
            value, {"rewards/chosen": rewards[wanted], "rewards/rejected": rewards[~wanted], "kl": kl.reshape(1)}
        )

    return Stage(loss, encode=encode, item=Judged, prepare=prepare, totals=totals)


def encode(
    dataset: str, labelled: Iterable[Labelled], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoded:
    """Labelled answers, each with the next row's answer beside it."""
    known = list(labelled)
    encoded = rows.encode(dataset, known, tokenizer, max_length, _answer_of)
    wanted = {row.number: row.label for row in known}
    answers: list[Sample] = encoded.samples
    following = [*answers[1:], *answers[:1]]
    encoded.samples = [
        Judged(sample, wanted[sample.number], mismatch(sample, other).cut(max_length))
        for sample, other in zip(answers, following, strict=True)
    ]
    return encoded


def _answer_of(dataset: str, row: Labelled, tokenizer: "PreTrainedTokenizerBase") -> Sample:
    return last_answers(
        rows.encode_row(dataset, Conversation(row.number, row.messages, row.tools), tokenizer),
    )


def mismatch(sample: Sample, other: Sample) -> Sample:
    """`other`'s answer after `sample`'s prompt."""
    begin, of_other = _begin(sample), _begin(other)
    return Sample(
        sample.dataset,
        sample.number,
        sample.input_ids[:begin] + other.input_ids[of_other:],
        [IGNORED] * begin + other.labels[of_other:],
    )


def _begin(sample: Sample) -> int:
    """The place of the first token with a label."""
    return next(place for place, label in enumerate(sample.labels) if label != IGNORED)
