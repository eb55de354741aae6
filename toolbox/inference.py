"""Batched answers from a loaded model, and the batches of likelihoods.py; what `evaluate` measures with."""

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from toolbox import templates
from toolbox.errors import MAY_LACK_MEMORY, OutOfMemoryError, lacks_memory
from toolbox.i18n import _

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 32

Conversation = list[dict[str, Any]]
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")
Watch = Callable[[int, int], None]
"""Told (done, all) after each batch; stops the work by raising."""
Keep = Callable[[Mapping[int, Any]], None]
"""Told each batch's outcomes by the numbers of its items, before the Watch."""
EachToken = Callable[[Sequence[list[int]], torch.Tensor], None]
"""Told (the prompts that are answered, their logits [prompts, vocabulary]) before each token; stops by raising."""


def unwatched(done: int, total: int) -> None:
    """A Watch that doesn't."""


def unkept(outcomes: Mapping[int, Any]) -> None:
    """A Keep that doesn't."""


class Stops:
    """Ends each answer once one of some texts stands in it; asked by transformers' `generate` after each token."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str]) -> None:
        self.tokenizer, self.texts = tokenizer, tuple(texts)
        # A token is a byte at the least, and some before it tell how it is spelt.
        self.reach = 8 + max(len(text.encode()) for text in self.texts)
        self.begin = 0
        """Where the answers of the batch at hand begin."""

    def __call__(self, ids: torch.Tensor, scores: Any, **_settings: Any) -> torch.Tensor:
        tails = self.tokenizer.batch_decode(ids[:, max(self.begin, ids.shape[1] - self.reach) :])
        return torch.tensor([any(text in tail for text in self.texts) for tail in tails], device=ids.device)


def cut_at(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of `stops`."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))]


def in_batches(
    items: Sequence[Item],
    length: Callable[[Item], int],
    work: Callable[[list[Item]], list[Outcome]],
    batch_size: int = BATCH_SIZE,
    watch: Watch = unwatched,
    known: Mapping[int, Outcome] | None = None,
    keep: Keep = unkept,
) -> list[Outcome]:
    """`work` on items of about the same length together; outcomes come in the order of `items`.

    The longest go first, so that a lack of memory shows at once: it halves the batch and goes on. What is `known` by
    its number in `items` is left out of its batch, which takes in no other for it: where whole batches are known, as
    who goes on finds them, the rest comes to the same bits; one that is known in part may be padded less, and round
    otherwise. `keep` is told each batch's outcomes. Raises OutOfMemoryError where a single item is too much.
    """
    order = sorted(range(len(items)), key=lambda index: -length(items[index]))
    return in_order(items, order, lambda place, size: place + size, work, batch_size, watch, known, keep)


def in_order(
    items: Sequence[Item],
    order: Sequence[int],
    end_of: Callable[[int, int], int],
    work: Callable[[list[Item]], list[Outcome]],
    size: int,
    watch: Watch,
    known: Mapping[int, Outcome] | None,
    keep: Keep,
) -> list[Outcome]:
    """`in_batches` with items in `order`; `end_of(place, size)` is where in it a batch of a size ends."""
    outcomes = dict(known or {})
    place = 0

    def next_ones(size: int) -> tuple[int, dict[int, Outcome]]:
        end = min(end_of(place, size), len(order))
        chosen = [index for index in order[place:end] if index not in outcomes]
        return end, dict(zip(chosen, work([items[index] for index in chosen]), strict=True)) if chosen else {}

    while place < len(order):
        size, (place, done) = that_fits(size, next_ones)
        outcomes.update(done)
        if done:
            keep(done)
        if done or place == len(order):
            watch(place, len(order))
    return [outcomes[index] for index in range(len(items))]


def that_fits(batch_size: int, work: Callable[[int], Outcome]) -> tuple[int, Outcome]:
    """(the batch size that fits, what `work` made with it): it is halved, and said, where memory runs out.

    Raises OutOfMemoryError where a single item is too much.
    """
    while True:
        try:
            return batch_size, work(batch_size)
        except MAY_LACK_MEMORY as error:
            if not lacks_memory(error):
                raise
        # Only now, with the error gone, is nothing held any more by the frames that it came through.
        batch_size = _halved(batch_size)


def _halved(batch_size: int) -> int:
    if batch_size == 1:
        raise OutOfMemoryError(
            _("The device ran out of memory on a single row."), _("Free its memory, or take a smaller model.")
        )
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(_("Out of memory: going on with batches of {size}.").format(size=batch_size // 2), flush=True)
    return batch_size // 2


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase", conversation: Conversation, prefix: str = "", tools: Any = None
) -> list[int]:
    """Token ids up to where the assistant speaks, and `prefix`, which it has said already.

    Models that can think first are asked not to: their templates take `enable_thinking`, others ignore it.
    """
    if tokenizer.chat_template:
        text = str(
            tokenizer.apply_chat_template(
                conversation, tools=tools or None, tokenize=False, add_generation_prompt=True, enable_thinking=False
            )
        )
        return [*tokenizer(text + prefix, add_special_tokens=False)["input_ids"]]
    text = "\n".join(str(message["content"]) for message in conversation) + "\n"
    return list(tokenizer(text + prefix)["input_ids"])


@torch.inference_mode()
def generate(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = 64,
    do_sample: bool = False,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    watch: Watch = unwatched,
) -> list[str]:
    """The assistant's next turn in each conversation, without special tokens.

    Greedy, or sampled from the model's own distribution (temperature 1, nothing cut off); the model's own generation
    settings are not used, so that two models are asked in the same way. The random state outside is left as it was.
    """
    settings = generation(model, tokenizer, max_new_tokens, do_sample)
    prompts = [prompt_ids(tokenizer, conversation) for conversation in conversations]
    answers = answer_ids(model, prompts, settings, seed=seed, batch_size=batch_size, watch=watch)
    return tokenizer.batch_decode(answers, skip_special_tokens=True)


def answer_ids(
    model: "PreTrainedModel",
    prompts: Sequence[list[int]],
    settings: "GenerationConfig",
    *,
    seed: int = 0,
    seeds: Sequence[int] = (),
    batch_size: int = BATCH_SIZE,
    watch: Watch = unwatched,
    each_token: EachToken = lambda prompts, logits: None,
    stops: Stops | None = None,
    known: Mapping[int, list[int]] | None = None,
    keep: Keep = unkept,
) -> list[list[int]]:
    """The token ids that follow each prompt, up to and with the first that ends an answer, where one does.

    `seeds`, one a prompt, sample from the model's own distribution, whatever stands beside a prompt in its batch;
    `settings` are greedy then. `known` and `keep` are as `in_batches` has them. The random state outside is left as it
    was.
    """

    def answer(batch: list[int]) -> list[list[int]]:
        rows = [prompts[place] for place in batch]
        draws = Draws([seeds[place] for place in batch]) if seeds else None
        return _answered(model, rows, settings, stops, draws, each_token)

    numbers = list(range(len(prompts)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return in_batches(numbers, lambda place: len(prompts[place]), answer, batch_size, watch, known, keep)


def _answered(
    model: Any,
    rows: list[list[int]],
    settings: "GenerationConfig",
    stops: Stops | None,
    draws: "Draws | None",
    each_token: EachToken,
) -> list[list[int]]:
    """The answers to one batch of prompts. An answered half leaves it: nothing is computed for nobody."""
    from transformers import DynamicCache

    ids, mask = _pad_left(rows, settings.pad_token_id, model.device)
    width, longest = ids.shape[1], ids.shape[1] + settings.max_new_tokens
    answers: list[list[int]] = [[] for _row in rows]
    left, cache = list(range(len(rows))), None
    if stops:
        stops.begin = width

    def told(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        each_token([rows[place] for place in left], logits)
        return draws(logits) if draws else logits

    while left:
        done = Done(settings.eos_token_id or [], stops) if len(left) > 1 and _may_leave(model, settings) else None
        rest = copy.copy(settings)
        rest.max_new_tokens = longest - ids.shape[1]
        made = model.generate(
            input_ids=ids, attention_mask=mask, generation_config=rest, logits_processor=[told],
            stopping_criteria=[asked] if (asked := done or stops) else None, return_dict_in_generate=True,
            **({"past_key_values": cache} if cache else {}),
        )  # fmt: skip
        for place, row in zip(left, made.sequences[:, width:].tolist(), strict=True):
            answers[place] = _until(row, settings.eos_token_id or [])
        stay = [number for number, over in enumerate(done.rows) if not over] if done else []
        if not stay or made.sequences.shape[1] >= longest:
            break
        chosen = torch.tensor(stay, device=ids.device)
        cache = made.past_key_values if isinstance(made.past_key_values, DynamicCache) else None
        if cache:
            cache.batch_select_indices(chosen)
        grown = made.sequences.shape[1] - mask.shape[1]
        ids, mask = made.sequences[chosen], torch.nn.functional.pad(mask[chosen], (0, grown), value=1)
        left = [left[number] for number in stay]
        if draws:
            draws.generators = [draws.generators[number] for number in stay]
    return answers


class Done:
    """Ends transformers' `generate` once half of the rows of a batch are answered, and knows which."""

    def __init__(self, ends: Sequence[int], stops: Stops | None) -> None:
        self.ends, self.stops = list(ends), stops
        self.rows: list[bool] = []

    def __call__(self, ids: torch.Tensor, scores: Any, **_settings: Any) -> torch.Tensor:
        over = torch.isin(ids[:, -1], torch.tensor(self.ends, device=ids.device))
        if self.stops:
            over |= self.stops(ids, scores)
        if self.rows:
            over |= torch.tensor(self.rows, device=ids.device)
        self.rows = over.tolist()
        return over | (2 * sum(self.rows) >= len(self.rows))


def _may_leave(model: Any, settings: "GenerationConfig") -> bool:
    """Whether rows may leave a batch: where nothing is drawn for all rows at once, and all that is remembered of them
    are keys and values. A model that sees pictures too keeps places beside them."""
    config = model.config
    if settings.do_sample or config.is_encoder_decoder or config.get_text_config() is not config or adds_tokens(model):
        return False
    return not getattr(model, "get_base_model", lambda: model)()._is_stateful


def adds_tokens(model: Any) -> bool:
    """Whether an adapter puts tokens of its own before each row."""
    return any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values())


class Draws:
    """Samples each row's next token by inversion, one uniform number a token from a generator of its own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [random.Random(seed) for seed in seeds]

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [rows, vocabulary] that leave the drawn token alone."""
        cumulative = logits.double().softmax(-1).cumsum(-1)
        uniform = torch.tensor([[generator.random()] for generator in self.generators], device=logits.device)
        drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        return torch.full_like(logits, -torch.inf).scatter(1, drawn.clamp(max=logits.shape[1] - 1), 0.0)


def _until(ids: list[int], ends: Sequence[int]) -> list[int]:
    """`ids` up to and with the first of `ends`; what follows it is padding."""
    return ids[: next((place for place, token in enumerate(ids) if token in ends), len(ids)) + 1]


def generation(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    max_new_tokens: int,
    do_sample: bool,
    temperature: float = 1.0,
) -> "GenerationConfig":
    """Every setting stated: transformers fills what is left out from the model's generation_config.

    Where nothing ends an answer, it goes on to its full length.
    """
    from transformers import GenerationConfig

    ends = templates.stops(tokenizer, model.generation_config.eos_token_id)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    return GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=do_sample, num_beams=1, repetition_penalty=1.0,
        temperature=temperature, top_k=0, top_p=1.0, eos_token_id=ends or None, pad_token_id=pad,
    )  # fmt: skip


def _pad_left(rows: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask [rows, longest]: all prompts end in the last column, where the answers begin."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
