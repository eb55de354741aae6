"""The proof of a merge: plain transformers, on real rows, must say what base and adapter say."""

import gc
import math
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from toolbox import datasets, loading, methods, templates
from toolbox.config import find_home
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.merging import recomputed, weights
from toolbox.plan import MergePlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

READ = 32
"""Rows of the data that are looked at for the longest."""
TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Difference of a logit, as a share of the largest logit, by the dtype that weights and sums are rounded to."""
SHALLOW = 8
"""Layers that these tolerances are for; of more they grow by the root, as independent rounding errors do.

So logits alone would let a slightly wrong merge of a deep model in 16 bits pass; recomputed weights would not.
"""
FALLBACK = "demo-persona"
"""The embedded rows that prove a merge where the adapter's own data are not known."""
QUANTISED_TOLERANCE = 3e-2
"""The tolerance against a base in 4 bits, whose products are summed in another order and rounded more often."""


class Extent(msgspec.Struct, frozen=True):
    """How much is asked: rows compared, tokens of each, prompts answered, tokens of each answer."""

    rows: int
    tokens: int
    prompts: int
    answer: int


LONG, SHORT = Extent(8, 64, 3, 24), Extent(4, 32, 2, 12)
"""SHORT for a large model on a processor, so that the proof takes less than half of what a merge by peft takes."""
LARGE = 5e8


class Questions(msgspec.Struct):
    """What both models are asked. Rows are of one length, and so are prompts: no padding, which might matter."""

    rows: list[list[int]]
    prompts: list[list[int]]
    answer: int
    conversation: list[dict[str, Any]]
    template: str
    """That conversation as the training tokenizer renders it."""


class Said(msgspec.Struct):
    """What a model says: logits of rows, and of prompts with answers (tokens × vocabulary each); where answers end.

    A reward model says one number a row, and gives no answers.
    """

    logits: torch.Tensor
    answers: torch.Tensor | None
    stops: set[int]


class Check(msgspec.Struct, frozen=True):
    """A line of the proof."""

    name: str
    passed: bool
    detail: str


class Proof(msgspec.Struct, frozen=True):
    max_abs_diff: float
    tolerance: float
    adapter_effect: float
    """The largest difference of any logit that the adapter makes: what a lost adapter would show."""
    rows: int
    greedy_equal: bool
    checks: tuple[Check, ...]
    bases: tuple["Onto", ...] = ()

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        names = ("max_abs_diff", "tolerance", "adapter_effect", "rows", "greedy_equal", "passed")
        bases = {"bases": msgspec.to_builtins(self.bases)} if self.bases else {}
        return {
            **{name: getattr(self, name) for name in names},
            "proof": [msgspec.structs.asdict(check) for check in self.checks],
            **bases,
        }


class Onto(msgspec.Struct, frozen=True):
    """An adapter trained on a base in 4 bits, and what it would be merged onto, beside the model as it was trained."""

    base: str
    """trained, dequantized or original."""
    chosen: bool
    max_abs_diff: float
    """The largest difference of a logit from the model as trained."""
    perplexity: float
    """Of the rows of the proof."""


def prove(plan: MergePlan, folder: Path) -> Proof:
    """Ask the merged model, loaded as anybody would, then base and adapter, unmerged and as they were in training."""
    questions = _questions(plan)
    device = loading.torch_device(plan.device.kind, plan.device.index)
    kind, config = loading.kind_of(folder, methods.scores(plan.adapter))
    merged, said = kind.from_pretrained(
        folder, config=config, device_map=device, output_loading_info=True, **loading.trust(folder)
    )
    merged.eval()
    _refuse_unknown_tokens(plan, questions, merged.get_input_embeddings().weight.shape[0])
    tokenizer = loading.tokenizer(folder)
    answers = [] if methods.scores(plan.adapter) else _answers(merged, questions)
    found, rows = _ask(merged, tokenizer, questions, answers), recomputed.taken(merged)
    same_text = _rendered(tokenizer, questions.conversation, False) == questions.template
    del merged
    gc.collect()  # hooks tie models into cycles: the one must be gone before the next is loaded
    expected, effect, sums = _ask_unmerged(plan, plan.onto, questions, answers, rows)
    allowed = tolerance(plan, expected.logits)
    difference = max(_largest_difference(found.logits, expected.logits), _answers_apart(found, expected))
    greedy = _agree(found, expected, questions, answers, tie=2 * allowed)
    known = not sums.unknown and not sums.wrong and sums.adapted > 0
    logits = _logits_check(plan, found, expected, known, effect, difference, allowed)
    may_turn = known and plan.dtype != "float32" and all(check.passed for check in logits)
    same_stops = found.stops == expected.stops
    return Proof(
        max_abs_diff=difference,
        tolerance=allowed,
        adapter_effect=effect,
        rows=len(questions.rows),
        greedy_equal=greedy,
        checks=(
            _loads(questions, said),
            *_weights_checks(sums),
            *logits,
            *_checks(questions, expected, greedy or may_turn, same_text, same_stops),
        ),
        bases=_bases(plan, questions, found, expected) if plan.quantization != "none" and answers else (),
    )


def tolerance(plan: MergePlan, logits: torch.Tensor) -> float:
    """The stated tolerance of this merge, in logits: rounding grows with what is rounded, and with depth.

    A score near zero is what is left of larger numbers.
    """
    share = QUANTISED_TOLERANCE if plan.dequantizes else TOLERANCES[plan.dtype]
    deep = max(1.0, math.sqrt(plan.model.num_hidden_layers / SHALLOW))
    largest = float(logits.abs().max())
    return share * deep * (max(1.0, largest) if methods.scores(plan.adapter) else largest)


def _questions(plan: MergePlan) -> Questions:
    """Real rows, the longest of the first ones, and the prompts of some of them.

    Raises InputError where the data hold no row with a token.
    """
    tokenizer = _trained_tokenizer(plan)
    extent = _extent(plan)
    specs = [spec for spec in plan.datasets if spec.kind != "text"] or [datasets.resolve(FALLBACK, find_home())]
    read = [turns for spec in specs for turns in islice(datasets.conversations(spec), READ)][:READ]
    encoded = sorted(((_encode(tokenizer, turns, False), turns) for turns in read), key=lambda row: -len(row[0]))
    taken = encoded[: extent.rows]
    rows = [tokens[: extent.tokens] for tokens, _turns in taken]
    room = min(extent.tokens, _context(plan) - extent.answer)
    prompts = [_encode(tokenizer, turns[:-1], True)[-room:] for _tokens, turns in taken[: extent.prompts]]
    if not rows or not rows[-1]:
        raise InputError(_("No row of the data has a token to prove the merge with."), _("Merge it with other data."))
    shortest, brief = len(rows[-1]), min(map(len, prompts))
    return Questions(
        rows=[row[:shortest] for row in rows],
        prompts=[prompt[-brief:] for prompt in prompts],
        answer=extent.answer,
        conversation=taken[0][1],
        template=_rendered(tokenizer, taken[0][1], False),
    )


def _extent(plan: MergePlan) -> Extent:
    """How much is asked of this model: no more than its context holds."""
    extent, context = SHORT if plan.model.parameters > LARGE and plan.device.kind == "cpu" else LONG, _context(plan)
    return msgspec.structs.replace(extent, tokens=min(extent.tokens, context), answer=min(extent.answer, context // 2))


def _context(plan: MergePlan) -> int:
    return plan.model.max_position_embeddings or sys.maxsize


def _refuse_unknown_tokens(plan: MergePlan, questions: Questions, known: int) -> None:
    """Raise InputError where a tokenizer makes tokens beyond the `known` ones, which have embeddings."""
    most = max(max(row) for row in (*questions.rows, *questions.prompts))
    if most >= known:
        raise InputError(
            _("The tokenizer makes a token {token}, and {model} has {count} embeddings.").format(
                token=most, model=plan.model.id, count=known
            ),
            _("Take the tokenizer that the model came with."),
        )


def _ask_unmerged(
    plan: MergePlan, onto: str, questions: Questions, answers: list[list[int]], rows: dict[str, torch.Tensor]
) -> tuple[Said, float, recomputed.Found]:
    """What base and adapter say, how far the adapter moves any logit of the first row, and if `rows` are right."""
    base = weights.load_base(plan, onto)
    if ends := templates.ends_of(plan.adapter):
        _generation(base).eos_token_id = ends
    model = loading.with_adapter(base, plan.adapter).eval()
    said = _ask(model, _trained_tokenizer(plan), questions, answers)
    with model.disable_adapter():
        bare = _logits(model, questions.rows[:1])
    return said, _largest_difference(bare, said.logits[:1]), recomputed.compare(model, rows)


def _ask(model: Any, tokenizer: "PreTrainedTokenizerBase", questions: Questions, answers: list[list[int]]) -> Said:
    told = [prompt + answer for prompt, answer in zip(questions.prompts, answers, strict=False)]
    return Said(_logits(model, questions.rows), _logits(model, told) if told else None, _stops(tokenizer, model))


def _bases(plan: MergePlan, questions: Questions, merged: Said, expected: Said) -> tuple[Onto, ...]:
    """What either base would make of an adapter that was trained on 4 bits."""
    gc.collect()
    other_name = "original" if plan.onto == "dequantized" else "dequantized"
    other, _effect, _sums = _ask_unmerged(plan, other_name, questions, [], {})
    trained = expected if plan.onto == "dequantized" else other
    found = {"trained": trained.logits, plan.onto: merged.logits, other_name: other.logits}
    return tuple(
        Onto(
            base=name,
            chosen=name == plan.onto,
            max_abs_diff=_largest_difference(found[name], trained.logits),
            perplexity=_perplexity(found[name], questions.rows),
        )
        for name in ("trained", "dequantized", "original")
    )


def _perplexity(logits: torch.Tensor, rows: list[list[int]]) -> float:
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), torch.tensor(rows)[:, 1:].flatten())
    return math.exp(float(losses))


def _weights_checks(sums: recomputed.Found) -> tuple[Check, ...]:
    """What says of itself whether a sum is right, whatever rounding does to logits."""
    if not sums.adapted:
        return ()
    right = _("{rows} rows of each of {tensors} tensors, {adapted} of them adapted, in float64").format(
        rows=recomputed.ROWS, tensors=sums.tensors, adapted=sums.adapted
    )
    wrong = _("{count} tensors differ, first {name}").format(count=len(sums.wrong), name=(*sums.wrong, "")[0])
    return (Check(_("Weights equal base + adapter"), not sums.wrong, wrong if sums.wrong else right),)


def _logits_check(
    plan: MergePlan, found: Said, expected: Said, known: bool, effect: float, difference: float, allowed: float
) -> tuple[Check, Check]:
    """Each logit; of 16 bits, where all weights are `known` to be right, those of most tokens.

    There a router that is nearly undecided may turn to another expert by rounding alone, for a token now and then; so
    a greedy answer may turn with it.
    """
    compared, detail = difference, _("largest difference {difference:.2g}, at most {allowed:.2g}")
    if known and plan.dtype != "float32" and math.isfinite(difference) and difference > allowed:
        compared = float((found.logits - expected.logits).abs().amax(-1).median())
        detail = _("difference of half of the tokens up to {difference:.2g}, at most {allowed:.2g}")
    moved = _("it moves logits by up to {effect:.3g}").format(effect=effect)
    return (
        Check(
            _("Logits equal base + adapter"), compared <= allowed, detail.format(difference=compared, allowed=allowed)
        ),
        Check(_("The adapter is in it"), known or effect == 0 or difference < effect / 2, moved),
    )


def _loads(questions: Questions, said: dict[str, Any]) -> Check:
    """Whether transformers found a number for all that the model is, and a place of the right shape for it."""
    lost = sorted([*said["missing_keys"], *(key for key, *_shapes in said["mismatched_keys"])])
    rows = _("{rows} rows, {tokens} tokens").format(rows=len(questions.rows), tokens=sum(map(len, questions.rows)))
    wrong = _("nothing for {count} tensors, first {name}").format(count=len(lost), name=(*lost, "")[0])
    return Check(_("Loads in plain transformers"), not lost, wrong if lost else rows)


def _checks(questions: Questions, expected: Said, greedy: bool, same_text: bool, same_stops: bool) -> tuple[Check, ...]:
    told = _("{count} answers of {tokens} tokens").format(count=len(questions.prompts), tokens=questions.answer)
    return (
        *([Check(_("Greedy answers equal"), greedy, told)] if expected.answers is not None else []),
        Check(_("Chat template equal"), same_text, _("renders the same text")),
        Check(_("End-of-answer tokens equal"), same_stops, ", ".join(map(str, sorted(expected.stops)))),
    )


def _trained_tokenizer(plan: MergePlan) -> "PreTrainedTokenizerBase":
    """The tokenizer that training used."""
    return loading.tokenizer(plan.model.path, plan.adapter)


def _rendered(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], prompt: bool) -> str:
    if tokenizer.chat_template is None:
        return "\n".join(str(message["content"]) for message in messages)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _encode(tokenizer: "PreTrainedTokenizerBase", messages: list[dict[str, Any]], prompt: bool) -> list[int]:
    return list(tokenizer(_rendered(tokenizer, messages, prompt), add_special_tokens=False)["input_ids"])


def _generation(model: Any) -> Any:
    """What says where answers end; a reward model, which writes none, has only its config."""
    return getattr(model, "generation_config", None) or model.config


def _stops(tokenizer: "PreTrainedTokenizerBase", model: Any) -> set[int]:
    configured = _generation(model).eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return {end for end in (tokenizer.eos_token_id, *ends) if end is not None}


@torch.no_grad()
def _logits(model: Any, rows: list[list[int]]) -> torch.Tensor:
    """Rows × tokens × vocabulary, in float32, on the CPU; of a reward model rows × 1, one row at a time."""
    batches = [rows] if model.get_output_embeddings() is not None else [[row] for row in rows]
    said = [model(torch.tensor(batch, device=model.device)).logits.float().cpu() for batch in batches]
    return torch.cat(said)


def _largest_difference(some: torch.Tensor, others: torch.Tensor) -> float:
    """The largest absolute difference; infinite where one is not finite or the shapes differ."""
    largest = float((some - others).abs().max()) if some.shape == others.shape else math.inf
    return largest if math.isfinite(largest) else math.inf


def _answers_apart(some: Said, others: Said) -> float:
    if some.answers is None or others.answers is None:
        return 0.0
    return _largest_difference(some.answers, others.answers)


def _answers(model: Any, questions: Questions) -> list[list[int]]:
    """Greedy answers, all of one length: what comes after an end only fills."""
    prompts = torch.tensor(questions.prompts, device=model.device)
    out = model.generate(
        input_ids=prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=questions.answer,
        do_sample=False, pad_token_id=int(prompts[0, -1]),
    )  # fmt: skip
    answers: list[list[int]] = out[:, prompts.shape[1] :].tolist()
    return answers


def _agree(found: Said, expected: Said, questions: Questions, answers: list[list[int]], tie: float) -> bool:
    """Whether both, after the words of each answer so far, take the same next one; up to where two are as likely.

    That is what answering greedily by themselves would give, at the price of one pass. What the merged model takes is
    read from its own pass too: with keys kept in a cache, sparse attention (DeepSeek's) chooses others.
    """
    if expected.answers is None or found.answers is None:
        return True
    for own, said, prompt, answer in zip(found.answers, expected.answers, questions.prompts, answers, strict=True):
        words = range(len(prompt) - 1, len(prompt) - 1 + len(_up_to(answer, expected.stops)))
        if not _follows(said[words.start : words.stop], own[words.start : words.stop].argmax(-1).tolist(), tie):
            return False
    return True


def _follows(logits: torch.Tensor, answer: list[int], tie: float) -> bool:
    for following, token in zip(logits, answer, strict=False):
        if following.argmax() != token:
            return float(following.max() - following[token]) <= tie
    return True


def _up_to(answer: list[int], stops: set[int]) -> list[int]:
    """An answer without what fills it up after its end."""
    end = next((place for place, token in enumerate(answer) if token in stops), len(answer))
    return answer[: end + 1]
