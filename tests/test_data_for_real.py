"""Data as people bring them, through the command line: real files train without a hint, broken ones get a sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Cli

STAGES = {
    "alpaca_en_demo.json": "sft", "alpaca_zh_demo.json": "sft", "identity.json": "sft",
    "glaive_toolcall_en_demo.json": "sft", "c4_demo.jsonl": "pt", "dpo_en_demo.json": "dpo",
    "dpo_zh_demo.json": "dpo", "kto_en_demo.json": "kto", "dataset_info.json:alpaca_en_demo": "sft",
    "dataset_info.json:dpo_zh_demo": "dpo", "dataset_info.json:kto_en_demo": "kto", "dataset_info.json:c4_demo": "pt",
}  # fmt: skip
SHORT = ("--val-size", "2", "--max-length", "128", "--per-device-train-batch-size", "1")
STEPS = ("--set", "max_steps=2", "gradient_accumulation_steps=1")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), STAGES.items())
def test_every_real_file_trains_at_the_stage_that_fits_it(
    toolbox_cli: Cli, shared_data: Callable[[str], Path], name: str, stage: str
) -> None:
    file, colon, subset = name.partition(":")
    path = f"{shared_data(f'instruct/{file}')}{colon}{subset}"
    words = ["finetune", "--dataset", path, "--model", "demo", *SHORT, *STEPS, "--yes", "--json"]
    result = toolbox_cli(*words, timeout=600).done().json
    assert (result["stage"], result["steps"], result["state"]) == (stage, 2, "done")
    assert 0 < result["train_loss"] < 20
    assert result["rows"] > 20


def turns(*said: tuple[str, str], **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in said], **more}


GOOD = turns(("user", "a"), ("assistant", "b"))
ROWS: dict[str, object] = {
    "empty_answer": {"instruction": "a", "output": " "},
    "empty_question": {"instruction": "", "output": "b"},
    "number_for_answer": {"instruction": "a", "output": 4},
    "history_of_texts": {"instruction": "a", "output": "b", "history": ["a"]},
    "messages_no_list": {"messages": "a"},
    "messages_empty": {"messages": []},
    "two_questions": turns(("user", "a"), ("user", "b")),
    "answer_first": turns(("assistant", "a")),
    "no_answer": turns(("user", "a")),
    "unknown_role": turns(("user", "a"), ("robot", "b")),
    "no_object": ["a"],
    "other_columns": {"foo": "a"},
}
FILES: dict[str, tuple[str, bytes]] = {
    "nothing": ("x.jsonl", b""),
    "spaces": ("x.jsonl", b" \n"),
    "empty_list": ("x.json", b"[]"),
    "bytes": ("x.jsonl", b"\xff\xfe\x00\x81"),
    "archive": ("x.jsonl", b"PK\x03\x04\xff\xff"),
    "torn_line": ("x.jsonl", json.dumps(GOOD).encode() + b'\n{"messages": [{"role"'),
    "torn_list": ("x.json", b"[" + json.dumps(GOOD).encode() + b', {"messages": oops}]'),
    "no_columns": ("x.jsonl", b'{"title": "a", "url": "b"}\n'),
    "open_quote": ("x.csv", b'instruction,output\na,b\n"c,d\n'),
    "cells": ("x.csv", b"instruction,output\na,b\nc\n"),
    "torn_parquet": ("x.parquet", b"PAR1\x00\x00\x00"),
}


@pytest.mark.slow
@pytest.mark.parametrize("verb", [("data", "check"), ("finetune", "--yes", "--dataset")])
@pytest.mark.parametrize("name", [*ROWS, *FILES])
def test_a_broken_file_is_answered_in_one_sentence_in_both_languages(
    toolbox_cli: Cli, home: Path, tmp_path: Path, name: str, verb: tuple[str, ...]
) -> None:
    if name in ROWS:
        good = GOOD if "messages" in str(ROWS[name]) else {"instruction": "a", "output": "b"}
        file, content = "x.jsonl", "".join(json.dumps(row) + "\n" for row in (good, ROWS[name])).encode()
    else:
        file, content = FILES[name]
    (tmp_path / file).write_bytes(content)
    for language in ("en", "zh"):
        answer = toolbox_cli(*verb, file, "--json", env={"YCDY_LANG": language})
        assert answer.status == 2, answer.out + answer.err
        assert "Traceback" not in answer.out + answer.err
        told = answer.json
        said = told["error"]["message"] if "error" in told else str(told["findings"][0]["detail"])
        assert said
        assert "\n" not in said
        assert language == "en" or any("一" <= letter <= "鿿" for letter in said), said
    assert not (home / "runs").exists()
