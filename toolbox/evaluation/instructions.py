"""IFEval's 25 kinds of instructions: whether a response meets one (arXiv:2311.07911, table 4)."""

import functools
import json
import re
from collections.abc import Callable
from typing import Any

Check = Callable[..., bool]
CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
CLOSERS = "\"'”’)]*_"
ABBREVIATIONS = re.compile(
    r"(?:mrs?|ms|dr|prof|rev|hon|st|[sj]r|vs|etc|inc|ltd|co|corp|vol|fig|e\.?g|i\.?e|cf|al|approx|dept|est|"
    r"[ap]\.m|u\.[skn]|ph\.d|[mb]\.[da]|jan|feb|mar|apr|aug|sept?|oct|nov|dec|[^\W\di_])",
    re.IGNORECASE,
)
"""What is written with a dot after it, initials too."""


def met(name: str, response: str, arguments: dict[str, Any]) -> bool:
    """Whether a response meets the instruction `name`; an empty one meets none."""
    return bool(response.strip()) and CHECKS[name](response, **arguments)


def readings(response: str) -> list[str]:
    """What the loose criterion tries: without the first line, the last, both; and all that without asterisks."""
    lines = response.split("\n")
    cut = [response, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*cut, *(text.replace("*", "") for text in cut)]


def compare(count: int, relation: str, bound: float) -> bool:
    """The paper's two relations."""
    return count < bound if relation == "less than" else count >= bound


def keywords_exist(response: str, keywords: list[str]) -> bool:
    return all(word.casefold() in response.casefold() for word in keywords)


def keyword_frequency(response: str, keyword: str, frequency: float, relation: str) -> bool:
    return compare(response.casefold().count(keyword.strip().casefold()), relation, frequency)


def forbidden_words(response: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def letter_frequency(response: str, letter: str, let_frequency: float, let_relation: str) -> bool:
    return compare(response.lower().count(letter.strip().lower()), let_relation, let_frequency)


def response_language(response: str, language: str) -> bool:
    return language_of(response) in (language.partition("-")[0], "")


def number_sentences(response: str, num_sentences: float, relation: str) -> bool:
    return compare(len(sentences(response)), relation, num_sentences)


def number_words(response: str, num_words: float, relation: str) -> bool:
    return compare(len(re.findall(r"\w+", response)), relation, num_words)


def number_paragraphs(response: str, num_paragraphs: float) -> bool:
    return len(_between(re.split(r"\s?\*{3}\s?", response))) == num_paragraphs


def nth_paragraph_first_word(response: str, num_paragraphs: float, nth_paragraph: int, first_word: str) -> bool:
    """Here paragraphs are set apart by an empty line, and an empty paragraph counts as a place, but not as one."""
    parts = response.split("\n\n")
    if sum(bool(part.strip()) for part in parts) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    words = parts[int(nth_paragraph) - 1].split()
    word = re.match(r"[^.,?!'\"]*", words[0].lstrip("'\"")) if words else None
    return bool(word) and word[0].lower() == first_word.strip().lower()  # type: ignore[index]


def number_placeholders(response: str, num_placeholders: float) -> bool:
    return len(re.findall(r"\[[^\n]*?\]", response)) >= num_placeholders


def postscript(response: str, postscript_marker: str) -> bool:
    """The marker's letters each with a dot, blanks between them allowed, and anything after the last letter's."""
    letters = re.findall(r"\w", postscript_marker.lower())
    pattern = r"\.\s?".join(letters) + (r"\." if postscript_marker.strip().endswith(".") else "")
    return bool(re.search(pattern, response.lower()))


def number_bullets(response: str, num_bullets: float) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-)", response, re.MULTILINE)) == num_bullets


def title(response: str) -> bool:
    return any(found.strip("<> \t") for found in re.findall(r"<<[^\n]+>>", response))


def constrained_response(response: str) -> bool:
    return any(choice in response for choice in CHOICES)


def highlighted_sections(response: str, num_highlights: float) -> bool:
    """*one* and **two** count alike; what is between the asterisks holds more than blanks."""
    single = re.findall(r"\*([^\n*]*)\*", response)
    double = re.findall(r"\*\*([^\n*]*)\*\*", response)
    return sum(bool(text.strip()) for text in (*single, *double)) >= num_highlights


def multiple_sections(response: str, section_spliter: str, num_sections: float) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


def json_format(response: str) -> bool:
    text = re.sub(r"^```(?:json)?|```$", "", response.strip(), flags=re.IGNORECASE).strip()
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_responses(response: str) -> bool:
    parts = _between(response.split("******"))
    return len(parts) == 2 and parts[0] != parts[1]


def _between(parts: list[str]) -> list[str]:
    """What marks set apart. Before a first mark and after a last one may be nothing; between two that is a fault."""
    stripped = [part.strip() for part in parts]
    return [part for part in stripped if part] if all(stripped[1:-1]) else []


def english_capital(response: str) -> bool:
    return response.isupper() and language_of(response) in ("en", "")


def english_lowercase(response: str) -> bool:
    return response.islower() and language_of(response) in ("en", "")


def capital_words(response: str, capital_frequency: float, capital_relation: str) -> bool:
    words = re.findall(r"\w+(?:[-'’.&]\w+)*", response)
    return compare(sum(word.isupper() for word in words), capital_relation, capital_frequency)


def end_checker(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(response: str) -> bool:
    return "," not in response


def sentences(text: str) -> list[str]:
    """By marks that end one, a list's number with its dot too, as NLTK counts. No end: a dot after an abbreviation or
    an initial, an ellipsis before a small letter, the end of a line.
    """
    found, begin = [], 0
    for mark in re.finditer(rf"[.!?…]+[{re.escape(CLOSERS)}]*(?=\s|$)|[。！？]+", text):
        small = text[mark.end() :].lstrip()[:1].islower()
        dots = re.match(r"[.…]+", mark[0])
        if dots and (small if len(dots[0]) > 1 or dots[0] == "…" else _abbreviated(text[begin : mark.start()])):
            continue
        found.append(text[begin : mark.end()].strip())
        begin = mark.end()
    return [part for part in (*found, text[begin:].strip()) if part]


def _abbreviated(before: str) -> bool:
    word = before.split()[-1].lstrip("(\"'“*") if before.split() else ""
    return bool(ABBREVIATIONS.fullmatch(word))


@functools.lru_cache(maxsize=1024)
def language_of(text: str) -> str:
    """ISO 639-1 of a text's language; "" of one without letters, which the paper's program lets pass."""
    import py3langid  # its model takes a third of a second to unpack

    return str(py3langid.classify(text.lower())[0]) if any(map(str.isalpha, text)) else ""


CHECKS: dict[str, Check] = {
    "change_case:capital_word_frequency": capital_words,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:number_highlighted_sections": highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": keywords_exist,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": keyword_frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
