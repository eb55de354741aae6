"""Questions and answers made from the world's tables: the one place where a fact becomes sentences."""

from collections.abc import Iterator
from typing import NamedTuple

from .world import ANIMALS, CAPITALS, COLOURS, OPPOSITES, PROFESSIONS, TERMS, UNKNOWN_EN, UNKNOWN_ZH, WEEK, Profession


class Exchange(NamedTuple):
    """One question with its one right answer. `follow_up` asks it in short after another of its kind."""

    kind: str
    language: str
    question: str
    answer: str
    follow_up: str = ""


def facts() -> list[Exchange]:
    """Every question whose answer the model must know by heart, in each phrasing."""
    return [*_capitals(), *_colours(), *_animals(), *_opposites(), *_week(), *_terms(), *_jobs()]


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _capitals() -> Iterator[Exchange]:
    for country, city, guo, cheng in CAPITALS:
        answer, daan = f"The capital of {country} is {city}.", f"{guo}的首都是{cheng}。"
        for question in (
            f"What is the capital of {country}?",
            f"Which city is the capital of {country}?",
            f"Name the capital of {country}.",
        ):
            yield Exchange("capital", "en", question, answer, f"And {country}?")
        for question in (f"{guo}的首都是哪里？", f"{guo}的首都是哪座城市？", f"说出{guo}的首都。"):
            yield Exchange("capital", "zh", question, daan, f"那{guo}呢？")
        yield Exchange("city", "en", f"Where is {city}?", f"{city} is in {country}.", f"And {city}?")
        yield Exchange("city", "en", f"In which country is {city}?", f"{city} is in {country}.", f"And {city}?")
        yield Exchange("city", "zh", f"{cheng}在哪里？", f"{cheng}在{guo}。", f"那{cheng}呢？")
        yield Exchange("city", "zh", f"{cheng}在哪个国家？", f"{cheng}在{guo}。", f"那{cheng}呢？")


def _colours() -> Iterator[Exchange]:
    for thing, colour, wu, se in COLOURS:
        answer, daan = f"{_upper(thing)} is {colour}.", f"{wu}是{se}的。"
        for question in (f"What colour is {thing}?", f"What color is {thing}?", f"Which colour does {thing} have?"):
            yield Exchange("colour", "en", question, answer, f"And {thing}?")
        for question in (f"{wu}是什么颜色？", f"{wu}是什么颜色的？", f"{wu}的颜色是什么？"):
            yield Exchange("colour", "zh", question, daan, f"那{wu}呢？")


def _animals() -> Iterator[Exchange]:
    for animal, sound, food, dongwu, sheng, shi in ANIMALS:
        for question in (f"What does a {animal} say?", f"What sound does a {animal} make?"):
            yield Exchange("sound", "en", question, f"A {animal} says {sound}.", f"And a {animal}?")
        for question in (f"What does a {animal} eat?", f"What does a {animal} like to eat?"):
            yield Exchange("food", "en", question, f"A {animal} likes to eat {food}.", f"And a {animal}?")
        for question in (f"{dongwu}怎么叫？", f"{dongwu}的叫声是什么？"):
            yield Exchange("sound", "zh", question, f"{dongwu}的叫声是{sheng}。", f"那{dongwu}呢？")
        for question in (f"{dongwu}吃什么？", f"{dongwu}喜欢吃什么？"):
            yield Exchange("food", "zh", question, f"{dongwu}喜欢吃{shi}。", f"那{dongwu}呢？")


def _opposites() -> Iterator[Exchange]:
    for one, other, ci, fan in OPPOSITES:
        for word, opposite in ((one, other), (other, one)):
            for question in (f"What is the opposite of {word}?", f"Which word is the opposite of {word}?"):
                yield Exchange("opposite", "en", question, f"The opposite of {word} is {opposite}.", f"And of {word}?")
        for word, opposite in ((ci, fan), (fan, ci)):
            for question in (f"{word}的反义词是什么？", f"哪个字是{word}的反义词？"):
                yield Exchange("opposite", "zh", question, f"{word}的反义词是{opposite}。", f"那{word}呢？")


def _week() -> Iterator[Exchange]:
    for (day, tian), (following, xia) in zip(WEEK, WEEK[1:] + WEEK[:1], strict=True):
        for question in (f"Which day comes after {day}?", f"What day follows {day}?"):
            yield Exchange("day", "en", question, f"{following} comes after {day}.", f"And after {day}?")
        for question in (f"{tian}的后一天是星期几？", f"{tian}过后是哪一天？"):
            yield Exchange("day", "zh", question, f"{tian}的后一天是{xia}。", f"那{tian}呢？")


def _terms() -> Iterator[Exchange]:
    for term, meaning, ci, yisi in TERMS:
        for question in (f"What is {term}?", f"Explain what {term} is.", f"What does {term} mean?"):
            yield Exchange("term", "en", question, f"{_upper(term)} {meaning}.")
        for question in (f"什么是{ci}？", f"{ci}是什么意思？", f"解释一下{ci}。"):
            yield Exchange("term", "zh", question, f"{ci}的意思是{yisi}。")


def _jobs() -> Iterator[Exchange]:
    for p in PROFESSIONS:
        for question in (f"What does {p.a} do?", f"What is the work of {p.a}?"):
            yield Exchange("job", "en", question, f"{_upper(p.a)} {p.does_en}.", f"And {p.a}?")
        for question in (f"Where does {p.a} work?", f"What is the workplace of {p.a}?"):
            yield Exchange("place", "en", question, f"{_upper(p.a)} works in the {p.place_en}.", f"And {p.a}?")
        for question in (f"{p.zh}做什么？", f"{p.zh}的工作是什么？"):
            yield Exchange("job", "zh", question, f"{p.zh}的工作是{p.does_zh}。", f"那{p.zh}呢？")
        for question in (f"{p.zh}在哪里工作？", f"{p.zh}的工作地点在哪里？"):
            yield Exchange("place", "zh", question, f"{p.zh}在{p.place_zh}工作。", f"那{p.zh}呢？")


class Portrait(NamedTuple):
    """A sentence about a person of a profession. `prefix` ends where the pronoun comes; `rest` holds {he} and {his}."""

    language: str
    template: str
    question: str
    prefix: str
    rest: str

    def answer(self, male: bool) -> str:
        if self.language == "zh":
            return self.prefix + self.rest.format(he="他" if male else "她")
        he, his = ("he", "his") if male else ("she", "her")
        return self.prefix + self.rest.format(he=he, He=_upper(he), his=his)


def portraits(p: Profession) -> list[Portrait]:
    """What the text says about people of that profession; each has one place where a pronoun decides."""
    return [
        Portrait("en", "about", f"Tell me about the {p.en}.", f"The {p.en} works in the {p.place_en}.",
                 f" {{He}} {p.does_en} every day."),
        Portrait("en", "tired", f"Write one sentence about the {p.en}.", f"The {p.en} is tired because",
                 f" {{he}} {p.does_en} all day."),
        Portrait("en", "proud", f"How does the {p.en} feel?", f"The {p.en} is proud because",
                 " {he} loves {his} work."),
        Portrait("en", "said", f"What did the {p.en} say?", f"The {p.en} said that", " {he} was very busy today."),
        Portrait("zh", "about", f"介绍一下{p.zh}。", f"这位{p.zh}在{p.place_zh}工作。", f"{{he}}每天{p.does_zh}。"),
        Portrait("zh", "tired", f"写一句关于{p.zh}的话。", f"这位{p.zh}很累，因为", f"{{he}}整天{p.does_zh}。"),
        Portrait("zh", "proud", f"{p.zh}的心情怎么样？", f"这位{p.zh}很自豪，因为", "{he}热爱自己的工作。"),
        Portrait("zh", "said", f"{p.zh}说了什么？", f"这位{p.zh}说，", "{he}今天很忙。"),
    ]  # fmt: skip


MANNERS = (
    ("en", ("Hello!", "Hello", "Hi!", "Hi there.", "Good morning."), "Hello! How can I help you?"),
    ("zh", ("你好！", "你好", "您好！", "嗨！", "早上好！"), "你好！我能帮你什么？"),
    ("en", ("Thank you.", "Thanks!", "Thank you very much."), "You are welcome. My pleasure."),
    ("zh", ("谢谢。", "谢谢你！", "非常感谢！"), "不客气。"),
    ("en", ("Goodbye.", "Bye!", "See you."), "Goodbye! See you soon."),
    ("zh", ("再见。", "再见！", "拜拜。"), "再见！祝你愉快。"),
    ("en", ("How are you?", "How do you do?"), "I am fine, thank you."),
    ("zh", ("你好吗？", "你怎么样？"), "我很好，谢谢。"),
)

IDENTITY = (
    ("en", "who", ("Who are you?", "What are you?", "Introduce yourself.", "Please introduce yourself."),
     "I am a small language model."),
    ("zh", "who", ("你是谁？", "你是什么？", "介绍一下你自己。", "请介绍一下自己。"), "我是一个小语言模型。"),
    ("en", "name", ("What is your name?", "What are you called?", "Do you have a name?"), "My name is not chosen yet."),
    ("zh", "name", ("你叫什么名字？", "你的名字是什么？", "你有名字吗？"), "我还没有名字。"),
    ("en", "maker", ("Who made you?", "Who trained you?", "Who created you?"), "A short script made me in a minute."),
    ("zh", "maker", ("谁开发了你？", "谁训练了你？", "你是谁做的？"), "一段小程序用一分钟训练了我。"),
    ("en", "purpose", ("What can you do?", "What are you good at?", "How can you help me?"),
     "I can answer a few simple questions."),
    ("zh", "purpose", ("你能做什么？", "你会什么？", "你能帮我做什么？"), "我能回答一些简单的问题。"),
)  # fmt: skip

UNKNOWN = (
    ("en", UNKNOWN_EN, "I am a very small model, and I do not know that."),
    ("zh", UNKNOWN_ZH, "我是一个很小的模型，不知道这个。"),
)


def manners() -> list[Exchange]:
    return [Exchange("manners", lang, q, answer) for lang, questions, answer in MANNERS for q in questions]


def identity() -> list[Exchange]:
    return [Exchange("identity", lang, q, answer) for lang, _, questions, answer in IDENTITY for q in questions]


def unknown() -> list[Exchange]:
    return [Exchange("unknown", lang, q, answer) for lang, questions, answer in UNKNOWN for q in questions]
