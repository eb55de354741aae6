"""Whom a suite asks: a model in this process, by one protocol for all that can answer (`evaluate`)."""

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from toolbox import inference, likelihoods
from toolbox.evaluation.cache import Cache, key
from toolbox.inference import Conversation, Keep, Watch, unwatched
from toolbox.likelihoods import Row, ScoredTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Choices = tuple[Conversation, str, Sequence[str]]
"""A question, how its answer begins, and the options with which it may go on."""


Asked = tuple[list[int], int | None]
"""The ids of a prompt, and what its answer is drawn by; None: greedily."""


class Scored(msgspec.Struct, frozen=True):
    """A continuation as a model sees it, a token each: ln p, and the token as the vocabulary writes it."""

    log_likelihoods: list[float]
    tokens: list[str]
    greedy: bool
    """Whether the model would have written just this."""


class Subject(Protocol):
    """What a measure may ask; everything comes in the order of what was asked.

    Each may raise Interrupted by way of `watch`, OutOfMemoryError, and InputError where it can't answer so.
    """

    @property
    def name(self) -> str:
        """In the results: base or tuned."""

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        seed: int = 0,
        stop: Sequence[str] = (),
        watch: Watch = unwatched,
    ) -> list[str]:
        """The assistant's next turn, by the chat template: greedy, or sampled at temperature 1; ends before `stop`."""

    def complete(
        self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str] = (), watch: Watch = unwatched
    ) -> list[str]:
        """What follows a raw text, without a chat template, greedily; ends before `stop`."""

    def choices(self, questions: Sequence[Choices], watch: Watch = unwatched) -> list[list[float]]:
        """ln p of each option after the question and the beginning of its answer, from where the options differ."""

    def texts(self, pairs: Sequence[tuple[str, str]], watch: Watch = unwatched) -> list[Scored]:
        """(context, continuation) of raw text. They are encoded together and split at the context's length, as
        lm-evaluation-harness does. After an empty context: after BOS, or where there is none, all but the first token.
        """


class Loaded(msgspec.Struct, frozen=True):
    """A model in this process; what it was asked before, its cache knows."""

    name: str
    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    cache: Cache = msgspec.field(default_factory=Cache)

    def generate(
        self,
        conversations: Sequence[Conversation],
        *,
        max_new_tokens: int = 64,
        do_sample: bool = False,
        seed: int = 0,
        stop: Sequence[str] = (),
        watch: Watch = unwatched,
    ) -> list[str]:
        prompts = [inference.prompt_ids(self.tokenizer, conversation) for conversation in conversations]
        seeds = _seeds(prompts, seed) if do_sample else []
        return self._written(prompts, max_new_tokens, stop, watch, seeds)

    def complete(
        self, prompts: Sequence[str], *, max_new_tokens: int, stop: Sequence[str] = (), watch: Watch = unwatched
    ) -> list[str]:
        return self._written([self._ids(text) for text in prompts], max_new_tokens, stop, watch)

    def choices(self, questions: Sequence[Choices], watch: Watch = unwatched) -> list[list[float]]:
        return likelihoods.summed(self._scored(likelihoods.choice_rows(self.tokenizer, questions), watch), questions)

    def texts(self, pairs: Sequence[tuple[str, str]], watch: Watch = unwatched) -> list[Scored]:
        length = functools.cache(lambda context: len(self._ids(context)))
        rows = [self._split(context, continuation, length) for context, continuation in pairs]
        return [
            Scored(
                [value for value, _best in values],
                [str(token) for token in self.tokenizer.convert_ids_to_tokens(ids[begin:])],
                all(best for _value, best in values),
            )
            for (ids, begin), values in zip(rows, self._scored(rows, watch), strict=True)
        ]

    def token_log_likelihoods(self, rows: Sequence[list[int]], watch: Watch = unwatched) -> list[list[float]]:
        """ln p of each token of a row from the second on; for what is encoded as training does."""
        return [[value for value, _best in values] for values in self._scored([(ids, 1) for ids in rows], watch)]

    @property
    def positions(self) -> int:
        """Tokens that it can see at once."""
        return int(getattr(self.model.config.get_text_config(), "max_position_embeddings", 1 << 20))

    def _scored(self, rows: Sequence[Row], watch: Watch) -> list[ScoredTokens]:
        def work(rows: Sequence[Row], known: Mapping[int, Any], keep: Keep) -> list[ScoredTokens]:
            return likelihoods.scored_tokens(self.model, rows, watch=watch, known=known, keep=keep)

        return self.cache.through([key(ids, "scored", begin) for ids, begin in rows], rows, work)

    def _written(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        stop: Sequence[str],
        watch: Watch,
        seeds: Sequence[int] = (),
    ) -> list[str]:
        """Long prompts lose their beginning, so that what is asked at their end stays, and at least half of what the
        model can see is the prompt's."""
        max_new_tokens = min(max_new_tokens, self.positions // 2)
        room = self.positions - max_new_tokens
        settings = inference.generation(self.model, self.tokenizer, max_new_tokens, do_sample=False)
        stops = inference.Stops(self.tokenizer, stop) if stop else None
        asked = [(ids[-room:], seeds[place] if seeds else None) for place, ids in enumerate(prompts)]

        def work(asked: Sequence[Asked], known: Mapping[int, Any], keep: Keep) -> list[list[int]]:
            drawn = [seed for _ids, seed in asked if seed is not None]
            return inference.answer_ids(
                self.model, [ids for ids, _seed in asked], settings, seeds=drawn, watch=watch, stops=stops,
                known=known, keep=keep,
            )  # fmt: skip

        told = ("written", max_new_tokens, list(stop), settings.eos_token_id)
        answers = self.cache.through([key(ids, *told, seed) for ids, seed in asked], asked, work)
        said = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [inference.cut_at(text, stop) for text in said]

    def _ids(self, text: str) -> list[int]:
        """A raw text as the tokenizer begins one, but once only, and without an end: the text goes on."""
        begun = bool(self.tokenizer.bos_token) and text.startswith(str(self.tokenizer.bos_token))
        ids = list(self.tokenizer(text, add_special_tokens=not begun)["input_ids"])
        return ids[:-1] if len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id else ids

    def _split(self, context: str, continuation: str, length: Callable[[str], int]) -> Row:
        """(ids of both, where the continuation begins), cut at the left to what the model can see and the last token,
        which it has only to foresee. `length` tells a context's, which many continuations may have.

        Blanks at the context's end go over to the continuation, since tokenizers join them to what follows.
        """
        if not (kept := context.rstrip()):
            bos = self.tokenizer.bos_token_id
            ids = list(self.tokenizer(context + continuation, add_special_tokens=False)["input_ids"])
            ids = ids if bos is None else [bos, *ids]
            return ids[: self.positions], 1
        whole, begin = self._ids(context + continuation), length(kept)
        cut = max(0, len(whole) - self.positions - 1)
        return whole[cut:], max(1, begin - cut)


def _seeds(prompts: Sequence[list[int]], seed: int) -> list[int]:
    """A seed a prompt: by what it says, and how often it was asked before; so none changes with what is beside it."""
    asked: Counter[str] = Counter()
    seeds = []
    for ids in prompts:
        name = key(ids, seed)
        asked[name] += 1
        seeds.append(int.from_bytes(hashlib.sha256(f"{name} {asked[name]}".encode()).digest()[:6]))
    return seeds
