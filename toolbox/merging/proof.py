"""The proof of a merge: plain transformers, on real rows, must say what base and adapter say."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from toolbox import datasets, loading, methods, templates
from toolbox.config import find_home
from toolbox.i18n import _
from toolbox.merging import weights
from toolbox.plan import MergePlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS, TOKENS, PROMPTS, NEW_TOKENS = 8, 64, 3, 24
"""Rows compared, tokens of each, prompts answered, tokens of each answer: 300 MB of logits at a vocabulary of 150k."""

TOLERANCES = {"float32": 1e-4, "float16": 5e-3, "bfloat16": 3e-2}
"""Largest difference of a logit, as a share of the largest logit, by the dtype that weights and sums are rounded to."""
FALLBACK = "demo-persona"
"""The embedded rows that prove a merge where the adapter's own data are not known."""
QUANTISED_TOLERANCE = 3e-2
"""The tolerance against a base in 4 bits, whose products are summed in another order and rounded more often."""


class Answer(msgspec.Struct):
    """A greedy continuation: its tokens, and by how much each logit led the next best."""

    tokens: list[int]
    leads: list[float]


class Reference(msgspec.Struct):
    """What base and adapter say: logits (a tensor of tokens × vocabulary a row) and answers.

    A reward model says one number a row, and gives no answers.
    """

    rows: list[list[int]]
    prompts: list[list[int]]
    logits: list[torch.Tensor]
    answers: list[Answer]
    adapter_effect: float
    """The largest difference of any logit that the adapter makes: what a lost adapter would show."""
    conversation: list[dict[str, Any]]
    template: str
    """That conversation as the training tokenizer renders it."""
    stops: set[int]
    """Tokens that end an answer, by the tokenizer or the generation settings."""


class Check(msgspec.Struct, frozen=True):
    """A line of the proof."""

    name: str
    passed: bool
    detail: str


class Proof(msgspec.Struct, frozen=True):
    max_abs_diff: float
    tolerance: float
    adapter_effect: float
    rows: int
    greedy_equal: bool
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        names = ("max_abs_diff", "tolerance", "adapter_effect", "rows", "greedy_equal", "passed")
        return {
            **{name: getattr(self, name) for name in names},
            "proof": [msgspec.structs.asdict(check) for check in self.checks],
        }


def tolerance(plan: MergePlan, reference: Reference) -> float:
    """The stated tolerance of this merge, in logits: rounding grows with what is rounded.

    A score near zero is what is left of larger numbers.
    """
    share = QUANTISED_TOLERANCE if plan.quantization == "nf4" else TOLERANCES[plan.dtype]
    largest = max(float(logits.abs().max()) for logits in reference.logits)
    return share * (max(1.0, largest) if methods.scores(plan.adapter) else largest)


def reference(plan: MergePlan) -> Reference:
    """Run base and adapter, unmerged and as they were in training, on the proof's rows and prompts."""
    tokenizer = _trained_tokenizer(plan)
    specs = [spec for spec in plan.datasets if spec.kind != "text"] or [datasets.resolve(FALLBACK, find_home())]
    conversations = [turns for spec in specs for turns in islice(datasets.conversations(spec), ROWS)][:ROWS]
    rows = [_encode(tokenizer, messages, False)[:TOKENS] for messages in conversations]
    prompts = [_encode(tokenizer, messages[:-1], True)[-TOKENS:] for messages in conversations[:PROMPTS]]
    base = weights.base(plan)
    if ends := templates.ends_of(plan.adapter):
        _generation(base).eos_token_id = ends
    model = loading.with_adapter(base, plan.adapter).eval()
    logits = _logits(model, rows)
    unadapted = _logits(model, rows, model.disable_adapter())
    return Reference(
        rows=rows,
        prompts=prompts,
        logits=logits,
        answers=[] if methods.scores(plan.adapter) else [_answer(model, prompt) for prompt in prompts],
        adapter_effect=_largest_difference(logits, unadapted),
        conversation=conversations[0],
        template=_rendered(tokenizer, conversations[0], False),
        stops=_stops(tokenizer, model),
    )


def prove(plan: MergePlan, folder: Path, reference: Reference) -> Proof:
    """Load the merged model as anybody would, and compare."""
    device = loading.torch_device(plan.device.kind, plan.device.index)
    kind, config = loading.kind_of(folder, methods.scores(plan.adapter))
    model = kind.from_pretrained(folder, config=config, device_map=device, **loading.trust(folder)).eval()
    difference = _largest_difference(_logits(model, reference.rows), reference.logits)
    answers = [_answer(model, prompt) for prompt in reference.prompts[: len(reference.answers)]]
    tokenizer = loading.tokenizer(folder)
    allowed = tolerance(plan, reference)
    greedy = all(map(partial(_same, tie=2 * allowed), reference.answers, answers))
    same_text = _rendered(tokenizer, reference.conversation, False) == reference.template
    same_stops = _stops(tokenizer, model) == reference.stops
    return Proof(
        max_abs_diff=difference,
        tolerance=allowed,
        adapter_effect=reference.adapter_effect,
        rows=len(reference.rows),
        greedy_equal=greedy,
        checks=_checks(reference, difference, allowed, greedy, same_text, same_stops),
    )


def _checks(
    reference: Reference, difference: float, allowed: float, greedy: bool, same_text: bool, same_stops: bool
) -> tuple[Check, ...]:
    effect = reference.adapter_effect
    logits = _("largest difference {difference:.2g}, at most {allowed:.2g}").format(
        difference=difference, allowed=allowed
    )
    moved = _("it moves logits by up to {effect:.3g}").format(effect=effect)
    rows = _("{rows} rows, {tokens} tokens").format(rows=len(reference.rows), tokens=sum(map(len, reference.rows)))
    count = len(reference.answers)
    answers = _("{count} answers of {tokens} tokens").format(count=count, tokens=NEW_TOKENS)
    return (
        Check(_("Loads in plain transformers"), True, rows),
        Check(_("Logits equal base + adapter"), difference <= allowed, logits),
        Check(_("The adapter is in it"), effect == 0 or difference < effect / 2, moved),
        *([Check(_("Greedy answers equal"), greedy, answers)] if count else []),
        Check(_("Chat template equal"), same_text, _("renders the same text")),
        Check(_("End-of-answer tokens equal"), same_stops, ", ".join(map(str, sorted(reference.stops)))),
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
def _logits(
    model: Any, rows: Sequence[list[int]], around: "AbstractContextManager[Any] | None" = None
) -> list[torch.Tensor]:
    """One row at a time, so that padding changes nothing; each tokens × vocabulary, in float32, on the CPU."""
    with around or nullcontext():
        return [model(torch.tensor([row], device=model.device)).logits[0].float().cpu() for row in rows]


def _largest_difference(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    """The largest absolute difference; infinite where one is not finite or the shapes differ."""
    if any(one.shape != other.shape for one, other in zip(some, others, strict=True)):
        return math.inf
    largest = max(float((one - other).abs().max()) for one, other in zip(some, others, strict=True))
    return largest if math.isfinite(largest) else math.inf


def _answer(model: Any, prompt: list[int]) -> Answer:
    out = model.generate(
        input_ids=torch.tensor([prompt], device=model.device),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
        max_new_tokens=NEW_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    best = [torch.topk(logits[0].float(), 2).values.tolist() for logits in out.logits]
    return Answer(out.sequences[0, len(prompt) :].tolist(), [first - second for first, second in best])


def _same(expected: Answer, found: Answer, tie: float) -> bool:
    """Whether two answers are equal, up to the first place where the expected one led by no more than `tie`."""
    for index, token in enumerate(expected.tokens):
        if index >= len(found.tokens) or found.tokens[index] != token:
            return expected.leads[index] <= tie
    return len(found.tokens) == len(expected.tokens)
