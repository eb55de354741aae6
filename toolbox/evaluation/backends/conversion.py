"""Suites of ours in the formats of other evaluations, so that both measure the same items."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files
from toolbox.suites import Suite, exact_match
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


_LM_EVAL = {"exact_match": _questions_for_lm_eval}


def for_evalscope(suite: Suite, limit: int, folder: Path) -> Path:
    """A folder with the rows of a suite, as EvalScope's loader of local files wants them."""
    _write(folder / "default_test.jsonl", _questions(suite, limit))
    return folder


def _questions(suite: Suite, limit: int) -> list[dict[str, Any]]:
    return [msgspec.to_builtins(row) for row in spread(exact_match.read(suite.path), limit)]


def _write(path: Path, rows: Iterable[Any]) -> Path:
    files.write_bytes(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path.absolute()
