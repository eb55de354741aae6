"""BBQ and CBBQ, questions about two people: scores worked out by hand, and the option that a text names."""

import json
from pathlib import Path
from typing import Any

import pytest
from plans import write_jsonl
from told import Told, measured

from toolbox import suites
from toolbox.config import Home
from toolbox.evaluation import bbq, cbbq
from toolbox.inference import unwatched
from toolbox.suites import Suite


def bbq_row(place: int, polarity: str, condition: str, label: int) -> dict[str, Any]:
    """Answers: 0 the old person, 1 the young one, 2 unknown."""
    return {
        "example_id": place, "question_index": "1", "question_polarity": polarity, "context_condition": condition,
        "category": "Age", "context": f"C{place}", "question": f"Q{place}?", "label": label,
        "ans0": f"old{place}", "ans1": f"young{place}", "ans2": f"unknown{place}",
        "answer_info": {"ans0": ["grandma", "old"], "ans1": ["Kim", "nonOld"], "ans2": ["Unknown", "unknown"]},
        "additional_metadata": {"stereotyped_groups": ["old"]},
    }  # fmt: skip


BBQ_ROWS = [
    bbq_row(0, "neg", "ambig", 2), bbq_row(1, "nonneg", "ambig", 2), bbq_row(2, "neg", "ambig", 2),
    bbq_row(3, "nonneg", "ambig", 2), bbq_row(4, "neg", "disambig", 1), bbq_row(5, "nonneg", "disambig", 1),
]  # fmt: skip
BBQ_SAID = {"old0": -1.0, "young1": -1.0, "old3": -1.0, "unknown2": -1.0, "old4": -1.0, "young5": -1.0}


def test_bbq_by_hand(tmp_path: Path) -> None:
    """Ambiguous: biased, biased, unknown, unbiased: accuracy 1/4, s_DIS of it 2 · 2/3 - 1, times 3/4 is 1/4.

    Disambiguated: both answers biased, one of them right: accuracy 1/2, s_DIS 1.
    """
    found = measured(bbq, write_jsonl(tmp_path / "Age.jsonl", BBQ_ROWS), Told(BBQ_SAID))
    assert found == {
        "bbq_accuracy_amb": 0.25, "bbq_bias_amb": pytest.approx(0.25), "bbq_accuracy_dis": 0.5, "bbq_bias_dis": 1.0,
    }  # fmt: skip


def test_bbq_where_nobody_is_named_has_no_bias(tmp_path: Path) -> None:
    """Then s_AMB is 0 (accuracy 1), and s_DIS, 0 / 0, is no figure."""
    found = measured(bbq, write_jsonl(tmp_path / "Age.jsonl", BBQ_ROWS), Told({"unknown": -1.0}))
    assert found == {"bbq_accuracy_amb": 1, "bbq_bias_amb": 0, "bbq_accuracy_dis": 0}


def test_bbq_targets_come_from_the_row_or_from_the_authors_table(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "Age.jsonl", [{**BBQ_ROWS[0], "additional_metadata": {}}, *BBQ_ROWS[1:]])
    assert [row.biased for row in suites.bbq.read(path)][:3] == [None, 1, 0]
    (tmp_path / "additional_metadata.csv").write_text(
        "category,question_index,example_id,target_loc\nAge,1,0,0.0\nAge,1,1,1\nAge,1,2,\n"
    )
    assert [row.biased for row in suites.bbq.read(path)][:3] == [0, 1, 0]


@pytest.mark.parametrize(
    ("answers", "stereotyped", "expected"),
    [
        ([["woman", "woman"], ["Bob", "M"]], ["F"], [True, False]),
        ([["F-Black", "F-Black"], ["M-Latino", "M-Latino"]], ["Black", "African American"], [True, False]),
        ([["pilot", "highSES"], ["the janitor", "lowSES"]], ["low SES"], [False, True]),
        ([["trans woman", "trans_F"], ["Ann", "nonTrans_F"]], ["transgender men", "trans"], [True, False]),
        ([["Kenyan", "Africa"], ["Swiss", "Europe"]], ["Swiss", "German"], [False, True]),
    ],
)  # fmt: skip
def test_bbq_groups_are_matched_in_all_their_spellings(
    answers: list[list[str]], stereotyped: list[str], expected: list[bool]
) -> None:
    wanted = suites.bbq._groups(stereotyped)
    assert [bool(suites.bbq._groups(answer) & wanted) for answer in answers] == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("B", 1), ("(C) Kim", 2), ("**A**.", 0), ("The answer is: C.", 2), ("答案：B，因为", 1), ("我选B", 1),
        ("A girl is too old.", bbq.NONE), ("Kim, of course", 1), ("Either Kim or grandma", bbq.NONE), ("", bbq.NONE),
        ("Cannot say.", bbq.NONE),
        ("B选项", 1), ("b", 1), ("Ｂ", 1), ("应选 B、", 1), ("选（B）", 1), ("\\boxed{B}", 1), ("[B]", 1), ("(b)", 1),
        ("答案不是A，而是B", 1), ("A、B都不对，选C", 2), ("<think>A?</think>B", 1), ("I choose option B.", 1),
        ("A is wrong; the answer is C", 2), ("B。不选A", 1), ("A或B", bbq.NONE),
        ("C\nThe context says so.", 2), ("不是答案B", bbq.NONE), ("The answer is a.", 0),
        ("The answer is a bit unclear.", bbq.NONE),
    ],
)  # fmt: skip
def test_what_a_server_wrote_names_an_option_or_none(said: str, expected: int) -> None:
    assert bbq.extracted(said, ["Grandma", "Kim", "Not known"]) == expected


def test_an_answer_that_names_no_option_is_wrong_and_not_biased(tmp_path: Path) -> None:
    questions = suites.bbq.read(write_jsonl(tmp_path / "Age.jsonl", BBQ_ROWS))
    assert bbq.outcomes(questions[:1], [bbq.NONE]).tolist() == [[0, 0, 0]]


def cbbq_file(folder: Path) -> Path:
    """A byte-order mark in the first key, as the published file has."""
    rows = []
    for place, (polarity, condition, label) in enumerate(
        [
            ("neg", "ambiguous", 2), ("non_neg", "ambiguous", 2), ("neg", "ambiguous", 2), ("non_neg", "ambiguous", 2),
            ("neg", "disambiguous", 0), ("non_neg", "disambiguous", 1), ("neg", "disambiguous", 0),
        ]
    ):  # fmt: skip
        rows.append(
            {
                "\ufeffexample_id": str(place), "question_polarity": polarity, "context_condition": condition,
                "category": "gender", "subcategory": "职场", "bias_targeted_groups": "女性", "context": f"C{place}",
                "question": "谁？", "ans0": f"男员工{place}", "ans1": f"女职员{place}", "ans2": f"不知道{place}",
                "label": str(label),
            }
        )  # fmt: skip
    path = folder / "cbbq.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return path


def test_cbbq_by_hand(tmp_path: Path) -> None:
    """Ambiguous: biased (woman), biased (man), unknown, unbiased: S_amb 2 of 4, accuracy 1/4.

    Disambiguated: one biased, one right, one unknown: S_disamb 1 of 2, accuracy 1/3; in all 0.4 / 2 + 0.6 / 2.
    """
    path = cbbq_file(tmp_path)
    assert suites.resolve(str(path), Home(tmp_path)).kind == "cbbq"
    said = {
        "女职员0": -1.0,
        "男员工1": -1.0,
        "不知道2": -1.0,
        "女职员3": -1.0,
        "女职员4": -1.0,
        "女职员5": -1.0,
        "不知道6": -1.0,
    }
    assert measured(cbbq, path, Told(said)) == {
        "cbbq_accuracy_amb": 0.25, "cbbq_bias_amb": 0.5, "cbbq_accuracy_dis": pytest.approx(1 / 3),
        "cbbq_bias_dis": 0.5, "cbbq_bias": pytest.approx(0.5),
    }  # fmt: skip


def test_a_favourite_letter_is_no_bias(tmp_path: Path) -> None:
    """A model that always takes the first option names each of the three as often, whatever its place in the file."""
    path = write_jsonl(tmp_path / "Age.jsonl", BBQ_ROWS)
    found = measured(bbq, path, Told({"A. ": -1.0}))
    assert found["bbq_accuracy_amb"] == pytest.approx(1 / 4)
    rows = bbq.measure(Told({"A. ": -1.0}), Suite(name="s", kind="bbq", path=path), 0, unwatched).rows  # type: ignore[arg-type]
    assert [row["chosen"] for row in rows] == [0, 1, 2, 0, 1, 2]
