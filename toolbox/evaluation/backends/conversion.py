"""Suites of ours in the formats of other evaluations, so that both measure the same items."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files
from toolbox.evaluation.multiple_choice import answers, prompt
from toolbox.suites import Suite, exact_match, multiple_choice
from toolbox.suites.rows import spread

MAX_NEW_TOKENS = 64
"""As `Subject.generate` has it."""
ENDS = r"^\s+|[\s.。!]+$"
"""What exact match disregards at an answer's ends; case is the other thing."""


def for_lm_eval(suite: Suite, limit: int, folder: Path) -> Path:
    """A task of lm-evaluation-harness's in `folder`, a YAML file with its rows beside it; returns the YAML file."""
    rows, settings = _LM_EVAL[suite.kind](suite, limit)
    name = Path(suite.name).stem
    data = _write(folder / f"{name}.jsonl", rows)
    task = {
        "task": f"ours_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test", **settings, "metadata": {"version": 1.0},
    }  # fmt: skip
    files.write_bytes(folder / f"{name}.yaml", msgspec.yaml.encode(task))
    return folder / f"{name}.yaml"


def by_chat(suite: Suite) -> bool:
    """Whether ours asks by the chat template."""
    return suite.kind == "exact_match"


def _questions_for_lm_eval(suite: Suite, limit: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Asked as a conversation, by the chat template, as ours are."""
    metric = {
        "metric": "exact_match", "aggregation": "mean", "higher_is_better": True, "ignore_case": True,
        "regexes_to_ignore": [ENDS],
    }  # fmt: skip
    rows = _questions(suite, limit)
    settings = {
        "output_type": "generate_until", "doc_to_text": "{{question}}", "doc_to_target": "answers",
        **({"description": "{{system}}"} if any(row["system"] for row in rows) else {}), "metric_list": [metric],
        "generation_kwargs": {"until": [], "max_gen_toks": MAX_NEW_TOKENS, "do_sample": False},
    }  # fmt: skip
    return rows, settings


def _choices_for_lm_eval(suite: Suite, limit: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The likeliest option after the very text that ours shows; solved examples are part of it."""
    exams = multiple_choice.exams(suite.path, spread(multiple_choice.read(suite.path), limit))
    rows = [
        {
            "context": prompt(exam, row),
            "options": [text.removeprefix(" ") for text in answers(row)],
            "answer": row.answer,
        }
        for exam in exams
        for row in exam.questions
    ]
    metrics = ["acc"] if any(row.lettered for exam in exams for row in exam.questions) else ["acc", "acc_norm"]
    settings = {
        "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "options",
        "doc_to_target": "answer", "metric_list": [{"metric": metric} for metric in metrics],
    }  # fmt: skip
    return rows, settings


_LM_EVAL = {"exact_match": _questions_for_lm_eval, "multiple_choice": _choices_for_lm_eval}


def for_evalscope(suite: Suite, limit: int, folder: Path) -> Path:
    """A folder with the rows of a suite, as EvalScope's loader of local files wants them."""
    _write(folder / "default_test.jsonl", _questions(suite, limit))
    return folder


def _questions(suite: Suite, limit: int) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(row) for row in spread(exact_match.read(suite.path), limit)]


def _write(path: Path, rows: Iterable[Any]) -> Path:
    files.write_bytes(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path.absolute()
