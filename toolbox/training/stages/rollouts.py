"""Rollouts: the policy answers questions, the answers are judged; `finetune --stage ppo|grpo` learns from them."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import msgspec
import torch
import torch.nn.functional as F

from toolbox import inference, loading
from toolbox.datasets import Conversation, Prompt
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.stages import GENERATED_AT_ONCE, Grpo, Ppo
from toolbox.training import calls, layouts, rows
from toolbox.training.rows import IGNORED, Encoded, Sample
from toolbox.training.stages import Experience, Stage, Totals
from toolbox.training.stages.judging import Judges
from toolbox.training.step import Forward, Outcome, diverged

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Some = TypeVar("Some")
HeedStop = Callable[[], None]
"""Raises Interrupted where a stop was asked for."""


class Question(msgspec.Struct, frozen=True):
    """A question as token ids, up to where the assistant speaks."""

    dataset: str
    row: Prompt
    input_ids: list[int]

    @property
    def number(self) -> int:
        return self.row.number

    @property
    def size(self) -> int:
        return len(self.input_ids)

    @property
    def sequences(self) -> list[Sample]:
        return [Sample(self.dataset, self.number, self.input_ids, self.input_ids)]

    @property
    def teaches(self) -> bool:
        return bool(self.input_ids)

    def cut(self, max_length: int) -> "Question":
        """Whole, or nothing: a part of a question is another question."""
        return self if self.size <= max_length else Question(self.dataset, self.row, [])


class Episode(msgspec.Struct, frozen=True):
    """An answer of the policy, and what its loss needs: tensors [answer's tokens], None where the stage has no use.

    `sample` has labels on the answer, with the token that ends it where it has `ended`.
    """

    sample: Sample
    row: Prompt
    text: str
    ended: bool
    advantages: torch.Tensor | None = None
    logps: torch.Tensor | None = None
    """By the policy that answered."""
    reference: torch.Tensor | None = None
    """Log-probabilities by the reference."""
    values: torch.Tensor | None = None
    returns: torch.Tensor | None = None

    @property
    def dataset(self) -> str:
        return self.sample.dataset

    @property
    def number(self) -> int:
        return self.sample.number

    @property
    def size(self) -> int:
        return self.sample.size

    @property
    def sequences(self) -> list[Sample]:
        return [self.sample]

    @property
    def teaches(self) -> bool:
        return self.sample.teaches

    @property
    def length(self) -> int:
        """Tokens of the answer."""
        return sum(label != IGNORED for label in self.sample.labels)

    def cut(self, max_length: int) -> "Episode":
        return msgspec.structs.replace(self, sample=self.sample.cut(max_length))


def encode(dataset: str, prompts: Iterable[Prompt], tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Encoded:
    """Questions of at most `max_length` tokens; longer ones are dropped."""
    return rows.encode(dataset, prompts, tokenizer, max_length, _question)


def _question(dataset: str, row: Prompt, tokenizer: "PreTrainedTokenizerBase") -> Question:
    fitted = calls.fitted(Conversation(row.number, row.messages, row.tools), str(tokenizer.get_chat_template()))
    return Question(dataset, row, inference.prompt_ids(tokenizer, fitted.messages, tools=fitted.tools))


def without_dropout(model: "PreTrainedModel") -> None:
    """No dropout: the ratio of a policy to itself has to be 1."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


class Rollouts:
    """Answers of the policy of one plan, and what they are worth."""

    def __init__(self, plan: FinetunePlan, options: Ppo | Grpo) -> None:
        self._plan, self._options = plan, options
        self._judges = Judges(plan, options)

    @cached_property
    def _tokenizer(self) -> "PreTrainedTokenizerBase":
        return loading.tokenizer(self._plan.model.path, chat_template=self._plan.chat_template)

    def stage(
        self,
        loss: Callable[[Forward, Sequence[Episode], Totals], Outcome],
        totals: Callable[[Forward, Sequence[Sequence[Episode]]], Totals],
        experience: Callable[[Forward, Sequence[Sequence[Question]], int, HeedStop], Experience],
        updates: int,
        extend: Callable[["PreTrainedModel"], None] = lambda model: None,
        kept: dict[str, float] | None = None,
        exporting: Callable[["PreTrainedModel"], AbstractContextManager[object]] = nullcontext,
    ) -> Stage:
        """The stage that learns in this manner from answers to questions."""

        def prepared(model: "PreTrainedModel") -> None:
            without_dropout(model)
            extend(model)

        return Stage(
            loss,
            as_prompts=True,
            encode=self.encode,
            item=Question,
            prepare=self.prepare,
            totals=totals,
            extend=prepared,
            experience=experience,
            updates=updates,
            longer_by=self._options.response_length,
            measure=self.measure,
            kept={} if kept is None else kept,
            exporting=exporting,
        )

    def encode(
        self, dataset: str, prompts: Iterable[Prompt], tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> Encoded:
        """Questions that leave room for an answer within `max_length` tokens. Raises InputError where none can."""
        room = max_length - self._options.response_length
        if room < 1:
            raise InputError(
                _("Answers of {count} tokens leave no room for questions in {max_length} tokens.").format(
                    count=self._options.response_length, max_length=max_length
                ),
                _("Use a larger --max-length, or shorter answers."),
            )
        return encode(dataset, prompts, tokenizer, room)

    def prepare(self, forward: Forward, items: Sequence[Question], run: Run, reporter: Reporter) -> None:
        """Load the reward model, where there is one."""
        self._judges.load()

    def answers(
        self,
        forward: Forward,
        questions: Sequence[Question],
        step: int,
        heed_stop: HeedStop,
        generations: int = 1,
        do_sample: bool = True,
    ) -> list[Episode]:
        """`generations` answers to each question, side by side; drawn from the policy by the plan's seed and `step`.

        Raises what `heed_stop` does, DivergedError where the policy gives no numbers any more.
        """
        options, model = self._options, forward.model

        def each_token(prompts: Sequence[list[int]], logits: torch.Tensor) -> None:
            heed_stop()
            finite = logits.amax(-1).isfinite()
            if not finite.all():
                bad = [ids for ids, fine in zip(prompts, finite.tolist(), strict=True) if not fine]
                raise diverged(step + 1, [question for question in questions if question.input_ids in bad])

        asked = [question for question in questions for _ in range(generations)]
        settings = inference.generation(
            model, self._tokenizer, options.response_length, do_sample, options.temperature if do_sample else 1.0
        )
        with torch.no_grad(), layouts.generating(forward), forward.autocast():
            said = inference.answer_ids(
                model,
                [question.input_ids for question in asked],
                settings,
                seed=random.Random(f"{self._plan.seed}/{step}").getrandbits(32),
                batch_size=GENERATED_AT_ONCE * self._plan.training.per_device_train_batch_size,
                each_token=each_token,
            )
        ends = settings.eos_token_id or []
        texts = self._tokenizer.batch_decode(said, skip_special_tokens=True)
        return [
            Episode(_answered(question, ids), question.row, text, ended=ids[-1] in ends)
            for question, ids, text in zip(asked, said, texts, strict=True)
        ]

    def rewards(self, episodes: Sequence[Episode]) -> tuple[torch.Tensor, dict[str, float]]:
        """(weighted rewards [episodes], NaN where nothing judges one; figures under TRL's names).

        Raises ToolboxError naming the reward function that can't be used.
        """
        found = self._judges.judge([episode.row for episode in episodes], [episode.text for episode in episodes])
        names, weights = self._judges.names, torch.tensor(self._judges.weights, dtype=torch.float64)
        values = torch.tensor(found, dtype=torch.float64).T  # [episodes, functions]; equal rewards have to stay equal
        total = (values * weights).nansum(1)
        total[values.isnan().all(1)] = math.nan
        lengths = [episode.length for episode in episodes]
        means = {f"rewards/{name}/mean": float(column.nanmean()) for name, column in zip(names, values.T, strict=True)}
        figures = {
            "reward": float(total.nanmean()),
            **(means if len(names) > 1 else {}),
            "completions/mean_length": sum(lengths) / len(lengths),
            "completions/clipped_ratio": sum(not episode.ended for episode in episodes) / len(episodes),
        }
        return total, {name: value for name, value in figures.items() if math.isfinite(value)}

    def measure(self, forward: Forward, questions: Sequence[Question]) -> dict[str, float]:
        """The figures of the policy's most likely answers."""
        return self.rewards(self.answers(forward, questions, 0, _never, do_sample=False))[1]

    def divided(self, episodes: Sequence[Some]) -> list[list[Some]]:
        """Episodes, or their places, in micro-batches; in their order, so that answers to one question share it."""
        micro = self._plan.training.per_device_train_batch_size
        return [list(episodes[begin : begin + micro]) for begin in range(0, len(episodes), micro)]


def _never() -> None:
    """An evaluation is not left half done."""


def _answered(question: Question, ids: list[int]) -> Sample:
    labels = [IGNORED] * question.size + ids
    return Sample(question.dataset, question.number, question.input_ids + ids, labels)


def token_logps(logits: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probabilities of `targets`, entropies without gradient) at the temperature that drew them, [tokens] each."""
    scaled = logits.float() / temperature
    logps = -F.cross_entropy(scaled, targets, reduction="none")
    with torch.no_grad():
        likely = torch.log_softmax(scaled, -1)
        entropies = -(likely.exp() * likely).sum(-1)
    return logps, entropies


@torch.no_grad()
def noted(
    forward: Forward, micro_batches: Sequence[Sequence[Episode]], name: str, temperature: float
) -> list[list[Episode]]:
    """The episodes with the log-probabilities of their tokens by `forward` under `name`.

    They are computed as the loss does it, in the same micro-batches, so that they are the very same numbers.
    """
    made = []
    for episodes in micro_batches:
        logits, targets = forward.logits([episode.sample for episode in episodes])
        logps = token_logps(logits, targets, temperature)[0].split([episode.length for episode in episodes])
        made.append([
            msgspec.structs.replace(episode, **{name: part}) for episode, part in zip(episodes, logps, strict=True)
        ])  # fmt: skip
    return made


def joined(episodes: Sequence[Episode], name: str, like: torch.Tensor) -> torch.Tensor:
    """A tensor of each episode, all tokens in a row, where `like` is."""
    return torch.cat([getattr(episode, name) for episode in episodes]).to(like.device)
