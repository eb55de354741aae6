"""Data sets: found by what is in them, and every row that can't be used named with its place."""

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolbox import datasets, embedded
from toolbox.config import Home
from toolbox.errors import InputError, NotFoundError

CHAT = {"messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]}
ALPACA = {"instruction": "翻译", "input": "apple", "output": "苹果"}
EXPECTED = [{"role": "user", "content": "翻译\napple"}, {"role": "assistant", "content": "苹果"}]


@pytest.fixture
def resolve(home: Path) -> Callable[[Path | str], datasets.DatasetSpec]:
    return lambda name: datasets.resolve(str(name), Home(home))


Resolve = Callable[[Path | str], datasets.DatasetSpec]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
@pytest.mark.parametrize("as_list", [True, False])
def test_a_file_is_read_by_what_is_in_it(
    tmp_path: Path, resolve: Resolve, name: str, encoding: str, as_list: bool
) -> None:
    path = tmp_path / name
    text = json.dumps([ALPACA, ALPACA], ensure_ascii=False, indent=1) if as_list else lines(ALPACA, ALPACA)
    path.write_bytes(text.encode(encoding))
    spec = resolve(path)
    assert (spec.format, spec.rows, spec.longest_chars) == ("alpaca", 2, len("翻译\napple苹果"))
    assert spec.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(row.number, row.messages) for row in datasets.load(spec)] == [(1, EXPECTED), (2, EXPECTED)]


def test_windows_line_ends_and_blank_lines_keep_line_numbers(tmp_path: Path, resolve: Resolve) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(lines(CHAT, CHAT).replace("\n", "\r\n\r\n").encode())
    assert [row.number for row in datasets.load(resolve(path))] == [1, 3]


def test_separators_inside_a_text_do_not_break_its_line(tmp_path: Path, resolve: Resolve) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines({**ALPACA, "output": "one\u2028two\x85three"}), "utf-8")
    assert resolve(path).rows == 1


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        (
            {**ALPACA, "system": "Be short.", "history": [["1", "2"]]},
            ["system", "user", "assistant", "user", "assistant"],
        ),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["user", "assistant"]),
        ({"system": "s", **CHAT}, ["system", "user", "assistant"]),
        ({"prompt": "a", "completion": "b"}, ["user", "assistant"]),
        ({**ALPACA, "input": None}, ["user", "assistant"]),
    ],
)
def test_the_common_manners_become_messages(tmp_path: Path, resolve: Resolve, row: Any, roles: list[str]) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines(row), "utf-8")
    assert [message["role"] for message in datasets.load(resolve(path))[0].messages] == roles


def test_broken_row_57_is_named_with_its_beginning(tmp_path: Path, resolve: Resolve) -> None:
    path = tmp_path / "data.jsonl"
    rows = lines(*[CHAT] * 100).splitlines()
    rows[56] = '{"messages": [{"role": "user", "content": "broken'
    path.write_text("\n".join(rows), "utf-8")
    with pytest.raises(InputError) as error:
        resolve(path)
    assert "57" in error.value.message
    assert str(path) in error.value.message
    assert "broken" in error.value.message
    assert error.value.remedy
    assert error.value.exit_status == 2


def test_a_broken_element_of_a_list_is_named_by_its_place(tmp_path: Path, resolve: Resolve) -> None:
    path = tmp_path / "data.json"
    path.write_text("[" + ",\n".join([json.dumps(ALPACA)] * 3) + ', {"instruction": oops}]')
    with pytest.raises(InputError, match=r"Row 4 .*oops"):
        resolve(path)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({**ALPACA, "output": " "}, "answer is empty"),
        ({**ALPACA, "instruction": "", "input": ""}, "question is empty"),
        ({**ALPACA, "output": 4}, "output is not a text"),
        ({**ALPACA, "history": ["a"]}, "history"),
        ({"instruction": "a", "text": "b"}, "instruction, text and none of output"),
        ({"messages": "a"}, "not a list of objects"),
        ({"messages": [user("a"), user("b")]}, "out of order"),
        ({"messages": [assistant("a")]}, "out of order"),
        ({"messages": [user("a")]}, "does not end with an answer"),
        ({"messages": []}, "does not end with an answer"),
        ({"messages": [user("a"), {"role": "robot", "content": "b"}]}, "'robot' is none of"),
        ({"messages": [user("a"), assistant("b")], "label": False}, "preferences"),
        (["a"], "not an object"),
    ],
)
def test_a_row_that_can_not_be_used_is_told_in_one_sentence(
    tmp_path: Path, resolve: Resolve, row: Any, words: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines(CHAT if "messages" in row else ALPACA, row), "utf-8")
    with pytest.raises(InputError, match=words) as error:
        resolve(path)
    assert error.value.message.startswith("Row 2 of ")
    assert "\n" not in error.value.message


def test_wrong_columns_name_those_found_and_those_looked_for(tmp_path: Path, resolve: Resolve) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines({"title": "a", "url": "b"}))
    with pytest.raises(InputError, match="found: title, url") as error:
        resolve(path)
    assert "messages" in error.value.remedy
    assert "instruction" in error.value.remedy


@pytest.mark.parametrize("content", [b"", b" \n", b"[]", b"\xff\xfe\x00\x81", b"PK\x03\x04\xff\xff"])
def test_files_without_rows_are_refused(tmp_path: Path, resolve: Resolve, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError):
        resolve(path)


@pytest.mark.parametrize("name", ["rows.zip", "rows.tar", "rows.tar.gz", "rows.jsonl", "rows.txt"])
def test_an_archive_is_named_as_such_and_never_unpacked(tmp_path: Path, resolve: Resolve, name: str) -> None:
    """One that leads outside by a name and by a link, whatever its own name pretends."""
    path, row = tmp_path / "in" / name, lines({"messages": []}).encode()
    path.parent.mkdir()
    if name in ("rows.zip", "rows.jsonl"):
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("../escaped.jsonl", row)
    else:
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tape:
            link, file = tarfile.TarInfo("rows"), tarfile.TarInfo("../escaped.jsonl")
            link.type, link.linkname, file.size = tarfile.SYMTYPE, "/etc", len(row)
            tape.addfile(link)
            tape.addfile(file, io.BytesIO(row))
    with pytest.raises(InputError, match="is an archive"):
        resolve(path)
    assert list(tmp_path.rglob("*")) == [path.parent, path]


def test_a_data_set_that_is_not_there_is_told_with_a_near_name(resolve: Resolve) -> None:
    with pytest.raises(NotFoundError) as error:
        resolve("demo-persone")
    assert "demo-persona" in error.value.remedy


def test_a_download_is_found_by_its_name_and_the_training_file_taken(home: Path, resolve: Resolve) -> None:
    folder = home / "datasets" / "owner" / "name"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text(lines(CHAT), "utf-8")
    (folder / "test.jsonl").write_text(lines(CHAT), "utf-8")
    assert resolve("owner/name").path.name == "train.jsonl"
    (folder / "train.jsonl").rename(folder / "other.jsonl")
    with pytest.raises(InputError, match="several files"):
        resolve("owner/name")


def test_a_file_that_changed_since_the_plan_is_refused(tmp_path: Path, resolve: Resolve) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(lines(CHAT), "utf-8")
    spec = resolve(path)
    path.write_text(lines(CHAT, CHAT), "utf-8")
    with pytest.raises(InputError, match="changed"):
        datasets.load(spec)


def test_the_embedded_data_sets_are_found(resolve: Resolve) -> None:
    spec = resolve("demo-persona")
    assert (spec.format, spec.path) == ("messages", embedded.DATASETS["demo-persona"])
    assert spec.rows > 100


@pytest.mark.parametrize(
    ("name", "format", "kind", "rows"),
    [
        ("alpaca_en_demo.json", "alpaca", "sft", 999),
        ("alpaca_zh_demo.json", "alpaca", "sft", 1000),
        ("identity.json", "alpaca", "sft", 91),
        ("glaive_toolcall_en_demo.json", "sharegpt", "sft", 300),
        ("dpo_en_demo.json", "preference", "preference", 300),
        ("dpo_zh_demo.json", "preference", "preference", 300),
        ("kto_en_demo.json", "messages", "kto", 300),
        ("c4_demo.jsonl", "text", "text", 300),
        ("dataset_info.json:glaive_toolcall_en_demo", "sharegpt", "sft", 300),
    ],
)
def test_real_files_are_read_whole_without_a_hint(
    shared_data: Any, resolve: Resolve, name: str, format: str, kind: str, rows: int
) -> None:
    folder = shared_data("instruct")
    spec = resolve(f"{folder}/{name}")
    assert (spec.format, spec.kind, spec.rows, spec.skipped) == (format, kind, rows, 0)
    assert len(datasets.load(spec)) == rows


def test_an_index_asks_which_of_its_data_sets_is_meant(shared_data: Any, resolve: Resolve) -> None:
    with pytest.raises(NotFoundError, match="index of 104 data sets") as error:
        resolve(shared_data("instruct/dataset_info.json"))
    assert "dataset_info.json:identity" in error.value.remedy
