"""The number that an answer states or ends with; what GSM8K is graded by, and rewards for arithmetic."""

import re
import unicodedata
from fractions import Fraction

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SIGNED = re.compile(
    r"(?P<sign>(?<![A-Za-z0-9)%.])[-−+])?(?:\\?[$¥€£]|RMB|US\$)?(?P<sign_behind>(?<=[$¥€£])-)?"
    rf"(?:(?P<whole>\d+)\s+(?=\d+/\d))?(?P<number>{_NUMBER})(?:\s*/\s*(?P<below>\d+))?"
)
"""A minus is a sign only where nothing stands before it that it could take away from."""
_MARK = re.compile(
    r"####|\\boxed\s*\{|\banswer\s*(?:is|:|=)|答案\s*(?:应该)?(?:[是为:]|等于)|^\s*(?:a|答)\s*:",
    re.IGNORECASE | re.MULTILINE,
)
"""What stands before a result: GSM8K's and MATH's marks, the phrase of chain-of-thought prompts (arXiv:2201.11903),
their Chinese, and the "A:" of the first published solutions (arXiv:2110.14168)."""
_BETWEEN = re.compile(r"[\s*_:=({\[\\]*(?:(?:is|about|约|大约|是|为)\s*)?[\s*_:=({\[\\]*")
LONGEST = 1000
"""Characters of a number: Python makes none of more than 4300 digits, which a model that repeats itself writes."""
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")


def stated(text: str) -> Fraction | None:
    """The number right behind the last mark of a result, as "#### 18"; None where no mark has one."""
    plain = _plain(text)
    for mark in reversed(list(_MARK.finditer(plain))):
        begins = _BETWEEN.match(plain, mark.end())
        if found := _SIGNED.match(plain, begins.end() if begins else mark.end()):
            return _value(found)
    return None


def final(text: str) -> Fraction | None:
    """The number that is stated as the result, else the last one of the text; None where there is none."""
    result = stated(text)
    if result is not None:
        return result
    found = list(_SIGNED.finditer(_plain(text)))
    return _value(found[-1]) if found else None


def _plain(text: str) -> str:
    """One width for digits and marks; LaTeX's fractions and thousands as people type them; no powers, as of cm²."""
    text = re.sub("[⁰¹²³⁴-⁹]", "", re.sub("(?=[¼-¾⅐-⅞])", " ", text))
    text = re.sub(r"(?<=\d)，(?=\d{3}(?!\d))", ",", text).replace("，", "， ")
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    return _FRACTION.sub(r" \1/\2", text.replace("{,}", ",").replace("\\,", "").replace("\\!", ""))


def _value(found: re.Match[str]) -> Fraction | None:
    if len(found[0]) > LONGEST:
        return None
    number = Fraction(found["number"].replace(",", "")) / (int(found["below"] or 1) or 1) + int(found["whole"] or 0)
    return -number if found["sign"] in ("-", "−") or found["sign_behind"] else number
