"""`data check|preview|clean|list|add` as people type them, and twenty broken files, each with its one sentence."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli

GOOD = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]}
LINE = json.dumps(GOOD, ensure_ascii=False)


Run = Callable[..., dict[str, Any]]


def turns(*roles: str) -> str:
    return json.dumps({"messages": [{"role": role, "content": f"{role} says"} for role in roles]})


def with_57(line: str) -> bytes:
    """A hundred lines, the 57th as given."""
    return "\n".join([LINE] * 56 + [line] + [LINE] * 43).encode()


def chat(*said: tuple[str, str], **more: Any) -> str:
    """A row of ShareGPT turns."""
    return json.dumps({"conversations": [{"from": who, "value": text} for who, text in said], **more})


LABELLED = LINE.replace('{"messages', '{"label": true, "messages', 1)
SIDES = {
    "chosen": GOOD["messages"],
    "rejected": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}],
}
CALLS = chat(("human", "a"), ("function_call", "call me"), ("observation", "b"), ("gpt", "c"))
QUOTED = b"question,answer\na,b\na,b,c\n"

BROKEN: dict[str, tuple[str, bytes, str]] = {
    "a line cut off": ("a.jsonl", with_57('{"messages": [{"role": "user", "con'), "Row 57 .*it is not JSON"),
    "an empty file": ("a.jsonl", b"", "holds no rows"),
    "only blank lines": ("a.jsonl", b"\n\n  \n", "holds no rows"),
    "an empty list": ("a.json", b"[]", "holds no rows"),
    "a list without its end": ("a.json", f"[{LINE},\n{LINE}".encode(), r"Row 3 .*the list ends without \]"),
    "a list with a torn element": ("a.json", f'[{LINE}, {{"messages": oops}}]'.encode(), "Row 2 .*it is not JSON"),
    "neither UTF-8 nor GBK": ("a.jsonl", b"\xff\xfe\x00\x81" * 9, "neither UTF-8 nor GBK"),
    "a row without a bottom": ("a.jsonl", with_57("[" * 100_000), "Row 57 .*it is not JSON"),
    "a list without a bottom": ("a.json", f"[{LINE}, {'[' * 100_000}".encode(), "Row 2 .*it is not JSON"),
    "a torn character": ("a.jsonl", with_57(LINE).replace("你".encode(), b"\xe4\xbd", 1), "Row 1 .*it is not JSON"),
    "an archive": ("a.jsonl", b"PK\x03\x04\x14\x00\xff\xff\x81", "is an archive, which is never unpacked here"),
    "no question": ("a.jsonl", b'{"title": "a", "url": "b"}\n', "no question and answer; found: title, url"),
    "bare texts": ("a.jsonl", b'"a"\n"b"\n', "no question and answer; found"),
    "turns of nobody": ("a.jsonl", with_57(chat(messages=[])), "Row 57 .*does not end with an answer"),
    "an answer of spaces": ("a.jsonl", chat(("human", "a"), ("gpt", " ")).encode(), "its answer is empty"),
    "an empty question": ("a.json", b'[{"instruction": "", "input": "", "output": "b"}]', "its question is empty"),
    "roles out of order": ("a.jsonl", with_57(turns("user", "user")), "Row 57 .*user where assistant belongs"),
    "an answer first": ("a.jsonl", turns("assistant", "user", "assistant").encode(), "assistant where user belongs"),
    "no answer at the end": ("a.jsonl", with_57(turns("user")), "Row 57 .*does not end with an answer"),
    "an unknown role": ("a.jsonl", turns("user", "robot").encode(), "role 'robot' is none of"),
    "a number for an answer": ("a.json", b'[{"prompt": "a", "response": 4}]', "its response is not a text"),
    "a label of neither kind": ("a.jsonl", f"{LABELLED}\n{LABELLED.replace('true', '7')}".encode(), "neither true nor"),
    "a side that is empty": ("a.jsonl", b'{"prompt": "a", "chosen": "b", "rejected": ""}', "rejected answer is empty"),
    "two different prompts": ("a.jsonl", json.dumps(SIDES).encode(), "no question in common"),
    "a call that is no JSON": ("a.jsonl", CALLS.encode(), "call of a function has no name"),
    "a CSV line with a cell too many": ("a.csv", QUOTED, "Row 3 .*it has 3 cells and the first line 2"),
    "a Parquet file cut off": ("a.parquet", b"PAR1" + b"\x15\x04" * 40, "is torn"),
    "pictures": ("a.jsonl", json.dumps({**GOOD, "images": ["a.png"]}).encode(), "holds pictures"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_told_in_one_sentence_with_a_remedy(name: str, tmp_path: Path, run: Run) -> None:
    file, content, words = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(content)
    answer = run("finetune", "--dataset", str(path), "--dry-run", "--json")
    error = answer["error"]
    assert re.search(words, error["message"]), error
    assert str(path) in error["message"]
    assert "\n" not in error["message"]
    assert error["remedy"]
    assert answer["status"] == 2


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line in this process: its `--json` object with the exit status as `status`."""
    from toolbox.cli import main

    def call(*words: str) -> dict[str, Any]:
        status = main([*words, "--home", str(home)])
        return {**json.loads(capsys.readouterr().out.strip().splitlines()[-1]), "status": status}

    return call


@pytest.fixture
def torn(tmp_path: Path) -> Path:
    path = tmp_path / "torn.jsonl"
    rows = [
        turns("user", "assistant").replace("says", f"says number {n} of all that there is to say") for n in range(100)
    ]
    rows[56] = '{"messages": [{"role": "user"'
    rows[70] = rows[12]
    path.write_text("\n".join(rows))
    return path


def test_a_broken_line_stops_or_is_skipped_counted_and_listed(torn: Path, run: Run, toolbox_cli: Cli) -> None:
    refused = run("finetune", "--dataset", str(torn), "--dry-run", "--json")
    assert refused["status"] == 2
    assert "--skip-broken" in refused["error"]["remedy"]
    shown = toolbox_cli("finetune", "--dataset", str(torn), "--dry-run", "--skip-broken").done().out
    assert "99 rows kept, 1 left out" in shown
    assert "57" in shown
    assert "it is not JSON" in shown


def test_check_counts_lists_and_ends_with_2_where_training_would_refuse(torn: Path, run: Run) -> None:
    found = run("data", "check", str(torn), "--near", "no", "--model", "demo", "--json")
    assert (found["status"], found["rows"], found["usable"]) == (2, 100, 99)
    assert {name: count for name, count in found["problems"].items() if count} == {"unusable": 1, "duplicate": 1}
    assert [finding["row"] for finding in found["findings"]] == [57, 71]
    assert found["lengths"]["unit"] == "tokens"
    assert found["stages"] == ["sft", "grpo", "ppo"]


def test_check_shows_a_picture_of_lengths_and_finds_a_test_set_inside(shared_data: Any, toolbox_cli: Cli) -> None:
    data, test = shared_data("instruct/alpaca_en_demo.json"), shared_data("instruct/identity.json")
    shown = toolbox_cli("data", "check", str(data), "--against", str(test)).done().out
    assert "████" in shown
    assert "hold a row of the test set" not in shown
    shown = toolbox_cli("data", "check", str(test), "--against", str(test)).done().out
    assert "hold a row of the test set" in shown


def test_clean_writes_a_new_file_and_a_record_and_leaves_the_old_one(torn: Path, run: Run, tmp_path: Path) -> None:
    before = torn.read_bytes()
    output = tmp_path / "out.jsonl"
    made = run("data", "clean", str(torn), "--near", "no", "--output", str(output), "--json")
    assert (made["status"], made["kept"], made["dropped"]) == (0, 98, {"unusable": 1, "duplicate": 1})
    assert torn.read_bytes() == before
    record = [json.loads(line) for line in Path(made["record"]).read_text().splitlines()]
    assert [(line["row"], line["dropped"]) for line in record] == [(57, "unusable"), (71, "duplicate")]
    checked = run("data", "check", str(output), "--near", "no", "--json")
    assert (checked["status"], checked["usable"], sum(checked["problems"].values())) == (0, 98, 0)
    again = run("data", "clean", str(torn), "--output", str(output), "--json")
    assert (again["status"], "nothing is overwritten" in again["error"]["message"]) == (2, True)


def test_clean_in_a_dry_run_writes_nothing(torn: Path, run: Run, tmp_path: Path) -> None:
    made = run("data", "clean", str(torn), "--output", str(tmp_path / "out.jsonl"), "--dry-run", "--json")
    assert made["kept"] < 100
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == ["torn.jsonl"]


def test_list_searches_and_add_gives_a_name(torn: Path, run: Run, tmp_path: Path) -> None:
    assert len(run("data", "list", "--json")["datasets"]) >= 200
    found = {named["name"] for named in run("data", "list", "zh", "sft", "--json")["datasets"]}
    assert "alpaca_zh" in found
    assert "Zhihu-KOL" not in found
    assert run("data", "list", "nothing-of-the-kind", "--json")["status"] == 2
    good = tmp_path / "good.csv"
    good.write_text("ask,tell\na,b\n")
    added = run(
        "data", "add", "mine", "--file", str(good), "--columns", "prompt=ask", "--columns", "response=tell", "--json"
    )
    assert added["status"] == 0
    assert run("data", "check", "Mine", "--json")["usable"] == 1
    assert run("data", "list", "mine", "--json")["datasets"][0]["where"] == str(good)
    assert "already" in run("data", "add", "mine", "--file", str(good), "--json")["error"]["message"]
    assert "knows no 'promt'" in run("data", "check", "mine", "--columns", "promt=ask", "--json")["error"]["message"]


@pytest.mark.slow
def test_preview_marks_what_is_learnt_with_the_code_that_trains(toolbox_cli: Cli, shared_data: Any) -> None:
    from toolbox import datasets, embedded, loading
    from toolbox.config import Home
    from toolbox.training import rows

    shown = toolbox_cli("data", "preview", "demo-persona", "--row", "3", "--json", timeout=300).done().json["rows"][0]
    spec = datasets.resolve("demo-persona", Home(Path("none")))
    sample = rows.encode_row("", datasets.load(spec)[2], loading.tokenizer(embedded.MODEL))
    sequence = shown["sequences"][0]
    assert (sequence["tokens"], sequence["learnt"]) == (
        len(sample.input_ids), sum(label != rows.IGNORED for label in sample.labels),
    )  # fmt: skip
    assert next(piece["text"] for piece in sequence["pieces"] if piece["style"] == "learnt").endswith("<|im_end|>")
    pair = toolbox_cli("data", "preview", str(shared_data("instruct/dpo_zh_demo.json")), timeout=300).done().out
    assert "rejected" in pair
    assert "⟦" in pair
    assert toolbox_cli("data", "preview", "demo-persona", "--row", "99999", timeout=300).status == 2
