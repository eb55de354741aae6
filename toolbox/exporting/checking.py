"""Before and after an export: both are loaded, foresee the same rows, and answer the same questions (`export`)."""

import gc
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from toolbox import datasets, engines, exports, inference, likelihoods, loading, templates
from toolbox.config import find_home
from toolbox.datasets import Conversation, DatasetSpec, Preference, Prompt, Text
from toolbox.errors import ToolboxError
from toolbox.i18n import _
from toolbox.plan import ExportPlan
from toolbox.training.rows import IGNORED, encode_row

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS, TOKENS, PROMPTS, NEW_TOKENS = 48, 256, 6, 32
"""Rows whose perplexity is measured, tokens of each at most; prompts answered, tokens of each answer."""
ROOM = 1.3
"""A model takes about so much more than its weights while it answers."""


class Questions(msgspec.Struct, frozen=True):
    """What both sides are asked, as texts and as the source model's token ids."""

    texts: list[str]
    rows: list[list[int]]
    counted: list[list[bool]]
    """Of each row, which tokens after the first count for the perplexity: the answers', or all where there are none."""
    prompts: list[list[int]]
    ends: list[int]
    """Tokens that end an answer."""


class Said(msgspec.Struct):
    """What a model said: ln p(row[i] | row[:i]) from i = 1, a list a row; and its greedy answers, as token ids.

    `tokens`: the rows as it tokenises the texts itself, where it does.
    """

    log_likelihoods: list[list[float]]
    answers: list[list[int]]
    tokens: list[list[int]] | None = None

    def perplexity(self, questions: Questions) -> float:
        """exp of the mean negative log-likelihood a token that counts; infinite where one is not finite."""
        pairs = zip(self.log_likelihoods, questions.counted, strict=True)
        values = [value for row, counts in pairs for value, counted in zip(row, counts, strict=True) if counted]
        if not values or not all(map(math.isfinite, values)):
            return math.inf
        return math.exp(min(700.0, -sum(values) / len(values)))


Ask = Callable[[ExportPlan, Path, Path, Questions], dict[str, Said]]


def questions(plan: ExportPlan, source: Path) -> Questions:
    """Rows and prompts out of the plan's data, spread over its data sets; rendered by the model's own template."""
    tokenizer = loading.tokenizer(source, plan.adapter)
    shares = [islice(_rows(plan, spec), -(-ROWS // len(plan.datasets))) for spec in plan.datasets]
    rows = [row for share in shares for row in share]
    texts = [rendered(tokenizer, row) for row in rows]
    marked = [_marked(tokenizer, row, text) for row, text in zip(rows, texts, strict=True)]
    usable = [place for place, (ids, _marks) in enumerate(marked) if len(ids) > 1]
    ids, marks = [marked[place][0][:TOKENS] for place in usable], [marked[place][1][1:TOKENS] for place in usable]
    return Questions(
        texts=[texts[place] for place in usable],
        rows=ids,
        counted=marks if any(map(any, marks)) else [[True] * len(mark) for mark in marks],
        prompts=_prompts(tokenizer, rows) or [row[: len(row) // 2] for row in ids[:PROMPTS]],
        ends=templates.stops(tokenizer, templates.ends_of(alone(plan) or source) or templates.ends_of(source)),
    )


def _marked(tokenizer: "PreTrainedTokenizerBase", row: datasets.Row, text: str) -> tuple[list[int], list[bool]]:
    """(ids, which of them a training would learn): all of a document, of a conversation its answers."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    if isinstance(row, Conversation | Preference) and tokenizer.chat_template:
        learnt = encode_row("", row, tokenizer)
        if learnt.input_ids[: len(ids)] == ids:
            return ids, [label != IGNORED for label in learnt.labels[: len(ids)]]
    return ids, [isinstance(row, Text)] * len(ids)


def _prompts(tokenizer: "PreTrainedTokenizerBase", rows: list[datasets.Row]) -> list[list[int]]:
    """Some of the conversations, up to where the assistant speaks."""
    talks = [row for row in rows if not isinstance(row, Text)]
    turns = [row.messages if isinstance(row, Prompt) else row.messages[:-1] for row in talks]
    every = max(1, len(turns) // PROMPTS)
    return [inference.prompt_ids(tokenizer, messages)[-TOKENS:] for messages in turns[::every][:PROMPTS]]


def _rows(plan: ExportPlan, spec: DatasetSpec) -> Iterator[datasets.Row]:
    wanted = set(plan.held_out.get(spec.name, ()))
    return (row for row in datasets.stream(spec) if not wanted or row.number in wanted)


def rendered(tokenizer: "PreTrainedTokenizerBase", row: datasets.Row) -> str:
    if isinstance(row, Text):
        return row.text
    if tokenizer.chat_template is None:
        return "\n".join(str(message["content"]) for message in row.messages)
    return str(tokenizer.apply_chat_template(row.messages, tools=row.tools or None, tokenize=False))  # type: ignore[arg-type]


def check(plan: ExportPlan, source: Path, folder: Path, questions: Questions, ask: Ask) -> dict[str, Any]:
    """Ask the source, then whatever loads the export; the figures of both, for result.json.

    Raises ToolboxError where an export foresees the rows worse than its type excuses.
    """
    before = ask_transformers(plan, source, questions, alone(plan))
    whole, worse = before.perplexity(questions), exports.FORMATS[plan.format].types[plan.type].worse
    readers = []
    for name, said in ask(plan, source, folder, questions).items():
        figures = _compared(before, said, questions)
        readers.append({"loaded_by": name, **figures})
        if not figures["perplexity"] <= whole * worse:
            raise _garbled(name, whole, figures["perplexity"])
        if wrong := figures.get("rows_tokenised_otherwise"):
            raise ToolboxError(
                _("{reader} tokenises {count} of {rows} rows otherwise than the model did, so it was not kept.").format(
                    reader=name, count=wrong, rows=len(questions.rows)
                ),
                _("The tokenizer can't be expressed in this format: take another format."),
            )
    if not readers:
        raise ToolboxError(
            _("Nothing here loads the export again, so it was not kept."),
            _("Install what serves it: {command}").format(command=engines.preparing("llamacpp", find_home())),
        )
    return {
        "bytes_before": sum(path.stat().st_size for path in (alone(plan) or source).glob("*.safetensors")),
        "perplexity_before": whole, "rows": len(questions.rows), "prompts": len(questions.prompts),
        "tokens": sum(map(sum, questions.counted)), "readers": readers, "passed": True,
    }  # fmt: skip


def ask(plan: ExportPlan, source: Path, folder: Path, questions: Questions) -> dict[str, Said]:
    """What plain transformers says of the export: for formats whose folders it loads by itself."""
    return {"transformers": ask_transformers(plan, folder, questions)}


def ask_transformers(plan: ExportPlan, folder: Path, questions: Questions, adapter: Path | None = None) -> Said:
    """Load `folder` in transformers, with `adapter` on top, and ask."""
    device = loading.torch_device(plan.device.kind, plan.device.index)
    model = loading.base_model(folder, dtype(plan), device)
    return ask_model(
        loading.with_adapter(model, adapter) if adapter else model, loading.tokenizer(folder, adapter), questions
    )


def alone(plan: ExportPlan) -> Path | None:
    """The adapter that is exported by itself."""
    return plan.adapter if plan.adapter_only else None


def ask_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", questions: Questions) -> Said:
    """What a loaded model says."""
    settings = inference.generation(model.eval(), tokenizer, NEW_TOKENS, do_sample=False)
    settings.eos_token_id = questions.ends or None
    said = Said(
        likelihoods.token_log_likelihoods(model, questions.rows),
        inference.answer_ids(model, questions.prompts, settings),
    )
    del model
    gc.collect()
    return said


def dtype(plan: ExportPlan) -> str:
    """What both sides are computed in: float32 on a processor that has room for it, so that only the format differs."""
    if plan.device.kind != "cpu":
        return "bfloat16" if plan.device.bf16 else "float16"
    return "float32" if plan.model.parameters * 4 * ROOM < plan.device.memory_free_bytes else plan.dtype


def _compared(before: Said, after: Said, questions: Questions) -> dict[str, Any]:
    alike = sum(one == other for one, other in zip(before.answers, after.answers, strict=True))
    begun = [_common(one, other) for one, other in zip(before.answers, after.answers, strict=True)]
    figures: dict[str, Any] = {
        "perplexity": after.perplexity(questions), "answers_equal": alike,
        "answer_tokens_equal": sum(begun), "answer_tokens": sum(map(len, before.answers)),
    }  # fmt: skip
    if after.tokens is not None:
        pairs = zip(questions.rows, after.tokens, strict=True)
        figures["rows_tokenised_otherwise"] = sum(one != other[: len(one)] for one, other in pairs)
    return figures


def _common(one: list[int], other: list[int]) -> int:
    """How many tokens two answers begin with alike."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (left, right) in enumerate(pairs) if left != right), min(len(one), len(other)))


def _garbled(reader: str, before: float, after: float) -> ToolboxError:
    return ToolboxError(
        _(
            "Loaded again by {reader}, the export's perplexity is {after:.4g} where the model's was {before:.4g}, "
            "so it was not kept."
        ).format(reader=reader, before=before, after=after),
        _("Take a type of more bits; if that fails too, the format can't hold this model."),
    )
