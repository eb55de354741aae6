"""A judge model grades answers to open questions, and says which of two is better (`evaluate --judge URL`)."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from toolbox.errors import InputError
from toolbox.evaluation.measures import Finding, mean
from toolbox.evaluation.statistics import Measured, Share
from toolbox.evaluation.subjects import Subject
from toolbox.i18n import _
from toolbox.inference import Watch

JUDGE_TOKENS = 512
GRADE = {
    "en": """You grade an answer to a question. Weigh whether it is right, whether it answers what was asked, \
and whether it is clear. Its length counts for nothing. Give your reasons in at most three sentences, then end with \
a line of this form, with a whole number from 1 (useless) to 10 (could not be better):
Score: NUMBER

[Question]
{question}

[Answer]
{answer}""",
    "zh": """请给一个问题的回答打分。看它是否正确、是否切题、是否清楚；长短不计。先用至多三句话说明理由，\
最后单独一行写出分数，从 1（毫无用处）到 10（不能更好）的整数，格式为：
评分：数字

【问题】
{question}

【回答】
{answer}""",
}
COMPARE = {
    "en": """You compare two answers to a question. Weigh which one is right, answers what was asked, and is clear. \
Neither their order nor their length counts. Give your reasons in at most three sentences, then end with one of these \
lines:
Verdict: A
Verdict: B
Verdict: tie

[Question]
{question}

[Answer A]
{first}

[Answer B]
{second}""",
    "zh": """请比较一个问题的两个回答，看哪个正确、切题、清楚；先后次序和长短都不计。先用至多三句话说明理由，\
最后单独一行写出下列三者之一：
结论：A
结论：B
结论：平

【问题】
{question}

【回答 A】
{first}

【回答 B】
{second}""",
}
SCORE = re.compile(r"(?:Score|评分|分数)\W{0,6}(10|[1-9])(?![\d.])", re.I)
VERDICT = re.compile(r"(?:Verdict|结论)\W{0,6}(A|B|tie|平)", re.I)


def judged(judge: Subject, findings: Mapping[str, Finding], watch: Watch) -> dict[str, Finding]:
    """The findings of one suite with the judge's marks, and where base and tuned were asked, whom it prefers.

    Every row keeps what the judge said. Raises InputError where nothing that it says can be read.
    """
    parts = len(findings) + (2 if len(findings) == 2 else 0)
    graded = {
        name: _graded(judge, finding.rows, _part(watch, place, parts))
        for place, (name, finding) in enumerate(findings.items())
    }
    marks = list(zip(*([row["score"] for row in rows] for rows in graded.values()), strict=True))
    read = [place for place, given in enumerate(marks) if all(given)]
    if not read:
        raise InputError(
            _("Nothing that the judge says ends with a mark."), _("Take a model that follows such instructions.")
        )
    metrics: dict[str, dict[str, Measured]] = {
        name: {"judge_score": mean([rows[place]["score"] for place in read], (1.0, 10.0))}
        for name, rows in graded.items()
    }
    if len(graded) == 2:
        base, tuned = graded.values()
        winners = _compared(judge, base, tuned, lambda done, total: watch(2 * total + 2 * done, parts * total))
        for name in graded:
            metrics[name]["judge_wins"] = Share([winner == name for winner in winners])
    return {
        name: msgspec.structs.replace(finding, metrics=metrics[name], rows=graded[name])
        for name, finding in findings.items()
    }


def _part(watch: Watch, place: int, parts: int) -> Watch:
    return lambda done, total: watch(place * total + done, parts * total)


def _graded(judge: Subject, rows: Sequence[dict[str, Any]], watch: Watch) -> list[dict[str, Any]]:
    """Each row with what the judge said of its answer, and the mark in it; None where there is none."""
    asked = [GRADE[language(row["question"])].format(question=row["question"], answer=row["said"]) for row in rows]
    told = judge.generate([_talk(text) for text in asked], max_new_tokens=JUDGE_TOKENS, watch=watch)
    return [{**row, "judge": said, "score": score(said)} for row, said in zip(rows, told, strict=True)]


def _compared(
    judge: Subject, base: Sequence[dict[str, Any]], tuned: Sequence[dict[str, Any]], watch: Watch
) -> list[str]:
    """base, tuned or tie of each question. The judge is asked in both orders, since it favours a place; who does not
    win both times does not win. What it said is kept in the tuned model's rows."""
    asked = [
        COMPARE[language(one["question"])].format(question=one["question"], first=first["said"], second=second["said"])
        for one, other in zip(base, tuned, strict=True)
        for first, second in ((one, other), (other, one))
    ]
    told = judge.generate([_talk(text) for text in asked], max_new_tokens=JUDGE_TOKENS, watch=watch)
    winners = []
    for place, row in enumerate(tuned):
        there, back = told[2 * place], told[2 * place + 1]
        winner = {("A", "B"): "base", ("B", "A"): "tuned"}.get((verdict(there), verdict(back)), "tie")
        row |= {"preferred": winner, "compared": [there, back]}
        winners.append(winner)
    return winners


def _talk(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def language(text: str) -> str:
    """Which prompt a question is judged with."""
    return "zh" if re.search("[\u4e00-\u9fff]", text) else "en"


def score(said: str) -> int | None:
    """The last mark in what the judge said."""
    found = SCORE.findall(said)
    return int(found[-1]) if found else None


def verdict(said: str) -> str:
    """A, B or tie: the last that the judge said; empty where it said none."""
    found = VERDICT.findall(said)
    return {"A": "A", "B": "B", "TIE": "tie", "平": "tie"}[found[-1].upper()] if found else ""
