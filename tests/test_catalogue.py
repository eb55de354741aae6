"""Suites by name: fetched from a hub when first asked for, taken from HOME/suites where they lie there, listed."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from loopback_hub import LoopbackHub
from plans import write_jsonl

from toolbox import suites
from toolbox.config import Home
from toolbox.suites import catalogue
from toolbox.suites.catalogue import CATALOGUE, NotFetchedError


def parquet(path: Path, rows: list[dict[str, Any]]) -> bytes:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path.read_bytes()


def exam(question: str, answer: str) -> dict[str, Any]:
    return {"id": 0, "question": question, "A": "一", "B": "二", "C": "三", "D": "四", "answer": answer}


@pytest.mark.slow
def test_a_suite_is_fetched_by_name_and_measured(toolbox_cli: Any, home: Path, tmp_path: Path) -> None:
    """Laid out as on the hubs, among files that do not belong to it; a second time no hub is asked."""
    files = {
        "accountant/val-00000-of-00001.parquet": parquet(tmp_path / "a", [exam("1+1=?", "B"), exam("1+2=?", "C")]),
        "accountant/dev-00000-of-00001.parquet": parquet(tmp_path / "b", [exam("2+2=?", "D")]),
        "accountant/test-00000-of-00001.parquet": parquet(tmp_path / "c", [exam("?", "")]),
        "logic/val-00000-of-00001.parquet": parquet(tmp_path / "d", [exam("4-1=?", "C")]),
        "README.md": b"# C-Eval",
    }
    words = ("evaluate", "--model", "demo", "--suite", "ceval", "--json")
    with LoopbackHub() as hub:
        hub.add("evalscope/ceval", files, "dataset")
        settings = {"modelscope_endpoint": hub.url, "huggingface_endpoint": hub.url, "source": "modelscope"}
        for name, value in settings.items():
            toolbox_cli("config", "set", name, value).done()
        result = toolbox_cli(*words, "--yes").done().json
    metrics = {row["metric"]: row for row in result["results"]}
    assert metrics["acc"]["n"] == 3
    assert "acc_macro" in metrics
    fetched = home / "datasets" / CATALOGUE["ceval"].huggingface
    assert not list(fetched.rglob("test-*"))
    assert toolbox_cli(*words).done().json["results"] == result["results"]


def test_what_lies_in_the_home_folder_comes_first_and_the_rest_says_where_it_is(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with pytest.raises(NotFetchedError) as missing:
        suites.resolve("gsm8k", home)
    assert "openai/gsm8k" in missing.value.remedy
    with pytest.raises(NotFetchedError, match="stereoset") as elsewhere:
        suites.resolve("stereoset", home)
    assert "github.com" in elsewhere.value.remedy
    (tmp_path / "suites").mkdir()
    write_jsonl(tmp_path / "suites" / "gsm8k.jsonl", [{"question": "1+1?", "answer": "2\n#### 2"}])
    found = suites.resolve("gsm8k", home)
    assert (found.name, found.kind, found.items) == ("gsm8k", "gsm8k", 1)
    assert catalogue.where("gsm8k", home) == "here"


def test_all_suites_are_listed(toolbox_cli: Any) -> None:
    listed = toolbox_cli("evaluate", "--list-suites", "--json").done().json["suites"]
    assert {row["name"] for row in listed} >= {"demo-qa", *CATALOGUE}
    assert {row["name"]: row["items"] for row in listed}["demo-qa"] == 120
