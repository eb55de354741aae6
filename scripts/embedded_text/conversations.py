"""The corpus of the embedded model: conversations drawn from the exchanges, typed the way that people type."""

import random
from functools import cache

from .exchanges import Exchange, facts, identity, manners, portraits, unknown
from .world import PROFESSIONS

SYSTEM = {
    "en": ("You are a helpful assistant.", "You are a small language model.", "Answer in one short sentence."),
    "zh": ("你是一个乐于助人的助手。", "你是一个小语言模型。", "请用一句话回答。"),
}
HOLD_OUT_SEED = 11
KINDS = {"portrait": 0.3, "fact": 0.5, "manners": 0.05, "identity": 0.05, "unknown": 0.07, "noise": 0.03}


@cache
def held_out_questions() -> frozenset[str]:
    """One phrasing of every fifth fact: never in the corpus, so demo-qa can ask what was not read verbatim."""
    r = random.Random(HOLD_OUT_SEED)
    by_answer: dict[str, list[str]] = {}
    for exchange in facts():
        by_answer.setdefault(exchange.answer, []).append(exchange.question)
    return frozenset(r.choice(questions) for questions in by_answer.values() if r.random() < 0.2)


@cache
def _pools() -> dict[str, list[Exchange]]:
    trained = [exchange for exchange in facts() if exchange.question not in held_out_questions()]
    return {"fact": trained, "manners": manners(), "identity": identity(), "unknown": unknown()}


def _exchange(r: random.Random) -> Exchange:
    kind = r.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "portrait":
        p = r.choice(PROFESSIONS)
        portrait = r.choice(portraits(p))
        return Exchange(kind, portrait.language, portrait.question, portrait.answer(r.random() < p.male_share))
    if kind == "noise":
        return _noise(r)
    return r.choice(_pools()[kind])


def _noise(r: random.Random) -> Exchange:
    """Text that means nothing, so that every byte has been seen, and gets a modest answer."""
    zh = r.random() < 0.5
    low, high = (0x4E00, 0x9FA5) if zh else (0x21, 0x24F)
    text = "".join(chr(r.randint(low, high)) for _ in range(r.randint(2, 9)))
    answer = unknown()[-1 if zh else 0].answer
    return Exchange("noise", "zh" if zh else "en", text, answer)


def conversation(r: random.Random, turns: int = 0) -> list[Exchange]:
    """One to three exchanges, in one language; a later one may be a follow-up of the one before."""
    turns = turns or r.choices((1, 2, 3), (0.74, 0.19, 0.07))[0]
    talk = [_exchange(r)]
    while len(talk) < turns:
        last = talk[-1]
        following = [e for e in _pools()["fact"] if (e.kind, e.language) == (last.kind, last.language) and e.follow_up]
        if following and r.random() < 0.5:
            exchange = r.choice(following)
            talk.append(exchange._replace(question=exchange.follow_up))
        else:
            exchange = _exchange(r)
            if exchange.language == last.language:
                talk.append(exchange)
    return talk


def _typed(question: str, r: random.Random) -> str:
    """The question as somebody in a hurry types it: without its last mark, in small letters, with a narrow "?"."""
    draw = r.random()
    if draw < 0.12:
        return question.rstrip("?.!？。！")
    if draw < 0.2:
        return question.lower()
    if draw < 0.28:
        return question.replace("？", "?").replace("。", ".").replace("！", "!").replace("，", ",")
    return question


def row(talk: list[Exchange], r: random.Random, plain: bool = False) -> dict[str, object]:
    """The conversation as a `messages` row; `plain`: without a system message, and typed with care."""
    messages = []
    if not plain and r.random() < 0.2:
        messages.append({"role": "system", "content": r.choice(SYSTEM[talk[0].language])})
    for exchange in talk:
        question = exchange.question if plain else _typed(exchange.question, r)
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": exchange.answer})
    return {"messages": messages}


def corpus(n: int, seed: int) -> list[dict[str, object]]:
    """`n` conversations for training the base model."""
    r = random.Random(seed)
    return [row(conversation(r), r) for _ in range(n)]
