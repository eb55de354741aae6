"""Formats of data sets: every manner of the field recognised by content, and the same row out of each."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from toolbox import datasets
from toolbox.config import Home
from toolbox.datasets import Conversation, DatasetSpec, Labelled, Preference, Row, Text
from toolbox.errors import InputError, NotFoundError

Q, A, B = "翻译 apple", "苹果", "香蕉"
TURNS = [{"role": "user", "content": Q}, {"role": "assistant", "content": A}]
CALL = {"name": "weather", "arguments": {"city": "Oslo"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLED = [
    {"role": "user", "content": Q},
    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "rain"},
    {"role": "assistant", "content": A},
]
SHAREGPT = [{"from": "human", "value": Q}, {"from": "gpt", "value": A}]
PREFERENCE = Preference(1, TURNS[:1], TURNS[1:], [{"role": "assistant", "content": B}])

Rows = Callable[..., list[Row]]


@pytest.fixture
def spec_of(home: Path, tmp_path: Path) -> Callable[..., DatasetSpec]:
    def make(*values: Any, columns: dict[str, str] | None = None, skip_broken: bool = False) -> DatasetSpec:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), "utf-8")
        return datasets.resolve(str(path), Home(home), columns, skip_broken)

    return make


@pytest.mark.parametrize("question", ["instruction", "query", "prompt", "question", "problem", "input", "Question"])
@pytest.mark.parametrize(
    "answer", ["output", "response", "completion", "answer", "target", "solution", "text", "Answer"]
)
def test_every_pair_of_synonyms_is_a_question_and_an_answer(spec_of: Any, question: str, answer: str) -> None:
    spec = spec_of({question: Q, answer: A})
    assert datasets.load(spec) == [Conversation(1, TURNS)]
    assert spec.notes == []


@pytest.mark.parametrize(
    "value",
    [
        {"messages": TURNS},
        {"conversation": TURNS},
        {"conversations": SHAREGPT},
        {"conversations": [{"from": "user", "value": Q}, {"from": "bot", "value": A}]},
        {"messages": json.dumps(TURNS)},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, TURNS[1]]},
    ],
)
def test_every_manner_of_turns_is_the_same_conversation(spec_of: Any, value: Any) -> None:
    assert datasets.load(spec_of(value)) == [Conversation(1, TURNS)]


@pytest.mark.parametrize(
    "value",
    [
        {"messages": CALLED, "tools": [TOOL]},
        {"messages": CALLED, "tools": json.dumps([TOOL["function"]])},
        {
            "conversations": [
                {"from": "human", "value": Q},
                {"from": "function_call", "value": json.dumps(CALL)},
                {"from": "observation", "value": "rain"},
                {"from": "gpt", "value": A},
            ],
            "tools": json.dumps([TOOL["function"]]),
        },
        {
            "messages": [
                {"role": "user", "content": Q},
                {"role": "tool_call", "content": json.dumps(CALL)},
                {"role": "tool_response", "content": "rain"},
                {"role": "assistant", "content": A},
            ],
            "tools": [TOOL],
        },
        {
            "messages": [
                CALLED[0],
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {**CALL, "arguments": '{"city": "Oslo"}'}}],
                },
                *CALLED[2:],
            ],
            "tools": [TOOL],
        },
    ],
)
def test_every_manner_of_tool_calls_is_openai_s_with_arguments_as_an_object(spec_of: Any, value: Any) -> None:
    assert datasets.load(spec_of(value)) == [Conversation(1, CALLED, [TOOL])]


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": Q, "chosen": A, "rejected": B},
        {"question": Q, "chosen": [TURNS[1]], "rejected": [{"role": "assistant", "content": B}]},
        {"chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": B}]},
        {"prompt": Q, "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": B}]},
        {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": [{"role": "assistant", "content": B}]},
        {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": B}},
        {"messages": TURNS, "rejected_response": B},
        {"messages": TURNS, "rejected_messages": [TURNS[0], {"role": "assistant", "content": B}]},
        {"query": Q, "response": A, "rejected_response": B},
        {"instruction": Q, "input": "", "chosen": A, "rejected": B},
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {A}", "rejected": f"\n\nHuman: {Q}\n\nAssistant: {B}"},
    ],
)
def test_every_manner_of_preference_is_the_same_pair(spec_of: Any, value: Any) -> None:
    spec = spec_of(value)
    assert (spec.kind, datasets.load(spec)) == ("preference", [PREFERENCE])
    assert list(datasets.conversations(spec)) == [TURNS]


def test_an_answer_that_is_json_stays_a_text(spec_of: Any) -> None:
    row = datasets.load(spec_of({"prompt": Q, "chosen": '{"a": 1}', "rejected": "[1]"}))[0]
    assert [side[0]["content"] for side in (row.chosen, row.rejected)] == ['{"a": 1}', "[1]"]


def test_sides_that_part_early_share_their_prompt_up_to_a_question(spec_of: Any) -> None:
    later = [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    row = datasets.load(
        spec_of({"chosen": [*TURNS, *later], "rejected": [TURNS[0], TURNS[1] | {"content": B}, *later]})
    )
    assert row[0].prompt == TURNS[:1]
    assert [len(row[0].chosen), len(row[0].rejected)] == [3, 3]


@pytest.mark.parametrize("value", [{"messages": TURNS, "label": True}, {"prompt": Q, "completion": A, "kto_tag": True}])
def test_labels_make_a_kto_set(spec_of: Any, value: Any) -> None:
    spec = spec_of(value, json.loads(json.dumps(value).replace("true", "false")))
    assert spec.kind == "kto"
    assert datasets.load(spec) == [Labelled(1, TURNS, True), Labelled(2, TURNS, False)]


def test_text_alone_is_plain_text_and_unused_columns_are_said(spec_of: Any) -> None:
    spec = spec_of({"text": "One.", "url": "x"})
    assert (spec.kind, datasets.load(spec)) == ("text", [Text(1, "One.")])
    assert "url" in spec.notes[0]


def test_ambiguity_is_said_with_the_choice_and_columns_change_it(spec_of: Any) -> None:
    value = {"question": Q, "answer": A, "output": B}
    spec = spec_of(value)
    assert datasets.load(spec)[0].messages[1]["content"] == B
    assert "output, answer" in spec.notes[0]
    assert "--columns response=COLUMN" in spec.notes[0]
    chosen = spec_of(value, columns={"response": "answer"})
    assert (datasets.load(chosen)[0].messages[1]["content"], chosen.notes) == (A, [])


def test_columns_that_nobody_could_guess_are_named(spec_of: Any) -> None:
    turns = [{"who": "customer", "said": Q}, {"who": "us", "said": A}]
    columns = {"messages": "log", "role": "who", "content": "said", "user": "customer", "assistant": "us"}
    spec = spec_of({"log": turns}, columns=columns)
    assert datasets.load(spec) == [Conversation(1, TURNS)]
    assert (
        msgspec.json.decode(msgspec.json.encode(spec, enc_hook=str), type=DatasetSpec, dec_hook=lambda t, v: t(v))
        == spec
    )
    with pytest.raises(InputError, match="no column 'say'"):
        spec_of({"a": "b"}, columns={"prompt": "say"})


def test_loss_false_is_kept_for_the_stage(spec_of: Any) -> None:
    spec = spec_of({"messages": [TURNS[0], TURNS[1] | {"loss": False}, *TURNS]})
    assert [turn.get("loss") for turn in datasets.load(spec)[0].messages] == [None, False, None, None]


def test_skipped_rows_are_counted_and_listed_and_the_rest_is_kept(spec_of: Any) -> None:
    spec = spec_of(
        {"prompt": Q, "response": A}, {"prompt": Q, "response": ""}, {"prompt": Q, "response": A}, skip_broken=True
    )
    assert (spec.rows, spec.skipped, [(f.number, f.reason) for f in spec.faults]) == (
        2,
        1,
        [(2, "its answer is empty")],
    )
    assert [row.number for row in datasets.load(spec)] == [1, 3]


# Files


def resolve(path: Path | str, home: Path, **options: Any) -> DatasetSpec:
    return datasets.resolve(str(path), Home(home), **options)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_is_read_with_line_numbers(tmp_path: Path, home: Path, encoding: str, delimiter: str) -> None:
    path = tmp_path / "data.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([("question", "answer"), (Q, 'two\nlines, "quoted"'), (Q, A)])
    rows = datasets.load(resolve(path, home))
    assert [(row.number, row.messages[1]["content"]) for row in rows] == [(2, 'two\nlines, "quoted"'), (4, A)]


def test_csv_labels_are_words(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("prompt,completion,label\na,b,True\na,c,false\n")
    assert [row.label for row in datasets.load(resolve(path, home))] == [True, False]


def test_parquet_is_read_in_shards(tmp_path: Path, home: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    for shard in range(2):
        table = pyarrow.table({"messages": [TURNS] * 3})
        parquet.write_table(table, folder / f"train-0000{shard}-of-00002.parquet")
        parquet.write_table(table, folder / f"test-0000{shard}-of-00002.parquet")
    spec = resolve(tmp_path / "set", home)
    assert (spec.rows, len(spec.more), datasets.load(spec)[5].messages) == (6, 1, TURNS)


@pytest.mark.parametrize(
    ("text", "documents"), [("One.\ntwo.\n\nThree.\n", ["One.\ntwo.", "Three."]), ("a\nb\n", ["a", "b"])]
)
def test_text_files_are_documents_of_blocks_or_lines(
    tmp_path: Path, home: Path, text: str, documents: list[str]
) -> None:
    path = tmp_path / "book.txt"
    path.write_text(text)
    assert [row.text for row in datasets.load(resolve(path, home))] == documents


def test_json_lines_named_txt_and_packed_ones_are_still_json_lines(tmp_path: Path, home: Path) -> None:
    line = json.dumps({"messages": TURNS}) + "\n"
    (tmp_path / "a.txt").write_text(line * 2)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line.encode() * 3))
    assert [resolve(tmp_path / name, home).rows for name in ("a.txt", "b.jsonl.gz")] == [2, 3]


def test_a_torn_character_is_a_broken_line_not_another_encoding(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"prompt": Q, "response": A}, ensure_ascii=False).encode() for _ in range(60)]
    lines[56] = lines[56].replace("苹果".encode(), "苹果".encode()[:4])
    path.write_bytes(b"\n".join(lines))
    spec = resolve(path, home, skip_broken=True)
    assert (spec.rows, [fault.number for fault in spec.faults]) == (59, [57])
    assert datasets.load(spec)[0].messages == TURNS


def test_a_long_list_is_read_through_a_window_and_goes_on_after_a_broken_element(tmp_path: Path, home: Path) -> None:
    elements = [json.dumps({"conversations": SHAREGPT, "note": "x" * 5000}) for _ in range(600)]
    elements[100] = elements[100].replace('"note":', '"note"')
    path = tmp_path / "data.json"
    path.write_text("[" + ",\n ".join(elements) + "]")
    spec = resolve(path, home, skip_broken=True)
    assert (spec.rows, [(fault.number, fault.reason) for fault in spec.faults]) == (599, [(101, "it is not JSON")])


def test_objects_printed_over_several_lines_are_rows(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text("\n".join(json.dumps({"prompt": Q, "response": A}, indent=2) for _ in range(3)))
    assert resolve(path, home).rows == 3


# Addresses, indexes, mixing


def test_an_address_takes_as_many_rows_as_it_says_and_the_same_ones_each_time(tmp_path: Path, home: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": str(i), "response": A}) + "\n" for i in range(100)))
    taken = {}
    for address, rows in (("#30", 30), ("*0.5", 50), ("*2.25", 225), ("#100", 100)):
        spec = resolve(f"{path}{address}", home)
        taken[address] = [row.number for row in datasets.stream(spec)]
        assert (spec.rows, len(taken[address])) == (rows, rows)
        assert taken[address] == [row.number for row in datasets.load(spec)]
    assert len(set(taken["#30"])) == 30
    assert set(taken["*2.25"]) == set(range(1, 101))


@pytest.mark.parametrize("address", ["x::a/b", "a.jsonl#0", "a.jsonl#few", "a.jsonl*-1", "a.jsonl*inf", ""])
def test_a_wrong_address_is_refused(home: Path, address: str) -> None:
    with pytest.raises(InputError):
        resolve(address, home)


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("hf::owner/name:sub#5", "download owner/name --type dataset --source huggingface"),
        ("ms::owner/name", "download owner/name --type dataset --source modelscope"),
        ("alpaca-en", "download llamafactory/alpaca_en --type dataset"),
        ("CodeAlpaca_20k", "download AI-ModelScope/CodeAlpaca-20k --type dataset --source modelscope"),
    ],
)
def test_what_only_a_hub_has_is_told_with_the_command_that_fetches_it(home: Path, address: str, command: str) -> None:
    with pytest.raises(datasets.NotDownloadedError) as error:
        resolve(address, home)
    assert command in error.value.remedy


def test_a_named_data_set_that_was_downloaded_is_found_with_its_columns(home: Path) -> None:
    folder = home / "datasets" / "AI-ModelScope" / "adgen"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(json.dumps({"content": Q, "summary": A}) + "\n")
    assert datasets.load(resolve("adgen_train", home))[0].messages == TURNS


def test_an_index_refuses_unknown_keys_and_files_outside(tmp_path: Path, home: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"a": Q, "b": A}]))
    entry = {"file_name": "rows.json", "columns": {"prompt": "a", "response": "b"}}
    index = tmp_path / "dataset_info.json"
    index.write_text(json.dumps({"mine": entry}))
    assert datasets.load(resolve(f"{index}:mine", home))[0].messages == TURNS
    assert resolve(f"{tmp_path}:mine", home).rows == 1
    for wrong, words in (
        ({**entry, "formating": "sharegpt"}, "no key 'formating'"),
        ({**entry, "columns": {"promt": "a"}}, r"no key 'columns\.promt'"),
        ({**entry, "formatting": "share"}, "Invalid enum value 'share'"),
        ({"file_name": "../rows.json"}, "outside"),
    ):
        index.write_text(json.dumps({"mine": wrong}))
        with pytest.raises(InputError, match=words):
            resolve(f"{index}:mine", home)


def test_a_name_that_is_nearly_one_of_an_index_is_proposed(tmp_path: Path, home: Path) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"identity": {"file_name": "x.json"}}))
    with pytest.raises(NotFoundError) as error:
        resolve(f"{tmp_path}/dataset_info.json:identiti", home)
    assert "dataset_info.json:identity" in error.value.remedy
