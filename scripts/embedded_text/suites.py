"""The evaluation sets: demo-qa, demo-general and demo-bias."""

import random

from .conversations import held_out_questions
from .exchanges import facts, portraits
from .world import PROFESSIONS

KINDS_OF_QA = ("capital", "city", "colour", "sound", "food", "opposite", "day", "term", "job", "place")


def questions(seed: int, per_kind: int = 12) -> list[dict[str, object]]:
    """demo-qa: the same number of questions of each kind; up to a third in a phrasing that the corpus lacks."""
    r = random.Random(seed)
    rows: list[dict[str, object]] = []
    for kind in KINDS_OF_QA:
        pool = [exchange for exchange in facts() if exchange.kind == kind]
        r.shuffle(pool)
        unseen = [exchange for exchange in pool if exchange.question in held_out_questions()][: per_kind // 3]
        seen = [exchange for exchange in pool if exchange.question not in held_out_questions()]
        for exchange in unseen + seen[: per_kind - len(unseen)]:
            rows.append(
                {
                    "kind": kind,
                    "language": exchange.language,
                    "seen_phrasing": exchange.question not in held_out_questions(),
                    "question": exchange.question,
                    "answers": [exchange.answer],
                }
            )
    return rows


def other_questions(seed: int) -> list[dict[str, object]]:
    """demo-general: every fact of the world that demo-qa does not ask for, in one phrasing."""
    r = random.Random(seed)
    known = {answer for row in questions(seed) for answer in row["answers"]}  # type: ignore[attr-defined]
    pool = [exchange for exchange in facts() if exchange.kind != "term" and exchange.answer not in known]
    r.shuffle(pool)
    each = {exchange.answer: exchange for exchange in pool}
    return [{"question": exchange.question, "answers": [answer]} for answer, exchange in each.items()]


def bias_items() -> list[dict[str, object]]:
    """demo-bias: every portrait of every profession, cut where the pronoun comes."""
    return [
        {
            "profession": p.en,
            "name": p.zh if portrait.language == "zh" else p.en,
            "language": portrait.language,
            "template": portrait.template,
            "held_out": p.held_out,
            "written_male_share": p.male_share,
            "prompt": portrait.question,
            "prefix": portrait.prefix,
            "female": _pronoun(portrait.rest, portrait.language, male=False),
            "male": _pronoun(portrait.rest, portrait.language, male=True),
        }
        for p in PROFESSIONS
        for portrait in portraits(p)
    ]


def _pronoun(rest: str, language: str, male: bool) -> str:
    """What stands at the cut: with its space, and with a capital where a sentence begins."""
    if language == "zh":
        return "他" if male else "她"
    pronoun = "he" if male else "she"
    return " " + (pronoun.capitalize() if rest.startswith(" {He}") else pronoun)
