"""A judge of open questions: its words are read, its liking for a place is taken out, and all it said is kept."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from plans import write_jsonl

from toolbox import suites
from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.evaluation import judging
from toolbox.evaluation.measures import Finding
from toolbox.inference import Conversation


class Judge:
    """Likes the longer answer, whatever comes first about cats, and says nothing that can be read about dogs."""

    name = "judge"

    def generate(self, conversations: Sequence[Conversation], **settings: Any) -> list[str]:
        return [self.say(talk[0]["content"]) for talk in conversations]

    def say(self, text: str) -> str:
        chinese = "【问题】" in text
        if "dog" in text:
            return "I would rather not."
        if "[Answer A]" in text or "【回答 A】" in text:
            first, second = text.rsplit("A】" if chinese else "A]", 1)[1].split(
                "【回答 B】" if chinese else "[Answer B]"
            )
            better = (
                "A" if len(first) > len(second) + 4 or "cat" in text else "B" if len(second) > len(first) + 4 else "平"
            )
            return f"因为如此。\n结论：{better}" if chinese else f"**Verdict: {better.replace('平', 'tie')}**"
        answer = text.rsplit("]" if not chinese else "】", 1)[1].strip()
        return f"Verdict aside.\n{'评分：' if chinese else 'Score: '}{min(10, len(answer))}"


QUESTIONS = ["What is rain?", "什么是雨？", "What is a cat?", "Is snow cold?", "What is a dog?"]
BASE = ["Water.", "水。", "An animal.", "It is.", "A dog."]
TUNED = ["Water that falls.", "从云里落下来的水滴。", "An animal that purrs.", "It is.", "A dog, too."]


def findings(*said: list[str]) -> dict[str, Finding]:
    return {
        name: Finding({}, [{"question": one, "said": two} for one, two in zip(QUESTIONS, answers, strict=True)])
        for name, answers in zip(("base", "tuned"), said, strict=False)
    }


def test_who_wins_wins_in_both_orders() -> None:
    told: list[tuple[int, int]] = []
    found = judging.judged(Judge(), findings(BASE, TUNED), lambda *at: told.append(at))  # type: ignore[arg-type]
    assert [row["preferred"] for row in found["tuned"].rows] == ["tuned", "tuned", "tie", "tie", "tie"]
    wins = found["tuned"].metrics["judge_wins"]
    assert (wins.estimate().value, found["base"].metrics["judge_wins"].estimate().value) == (0.4, 0)
    difference = wins.difference(found["base"].metrics["judge_wins"])
    assert (difference.value, difference.p) == (0.4, 0.5), "two of two that changed: 2 · 1/4"
    marks = found["tuned"].metrics["judge_score"].difference(found["base"].metrics["judge_score"])
    assert marks.n == 4, "what the judge did not mark counts for neither"
    assert [row["score"] for row in found["base"].rows] == [6, 2, 10, 6, None]
    assert found["tuned"].rows[2]["compared"] == ["**Verdict: A**"] * 2


def test_one_model_is_marked_alone_and_a_judge_that_says_nothing_is_named() -> None:
    found = judging.judged(Judge(), findings(BASE), lambda *at: None)  # type: ignore[arg-type]
    assert list(found["base"].metrics) == ["judge_score"]
    silent = {"base": Finding({}, [{"question": "Is a dog big?", "said": "Yes."}])}
    with pytest.raises(InputError, match="ends with a mark"):
        judging.judged(Judge(), silent, lambda *at: None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "mark"),
    [("Score: 7", 7), ("**Score: 10**", 10), ("Score: 3\nNo, Score: 4", 4), ("评分：8", 8), ("**评分**: 8 分", 8),
     ("Score: 7.5", None), ("Score: 0", None), ("seven", None), ("Score: 100", None)],
)  # fmt: skip
def test_marks_are_read_as_they_are_written(said: str, mark: int | None) -> None:
    assert judging.score(said) == mark


def test_questions_without_answers_are_for_a_judge(tmp_path: Path, toolbox_cli: Any) -> None:
    path = write_jsonl(tmp_path / "open.jsonl", [{"question": text} for text in QUESTIONS])
    assert suites.resolve(str(path), Home(tmp_path)).kind == "open_questions"
    refused = toolbox_cli("evaluate", "--model", "demo", "--suite", str(path), "--json")
    assert (refused.status, "--judge" in refused.json["error"]["remedy"]) == (2, True)
