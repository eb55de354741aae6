"""Text in columns: a Chinese character takes two."""

import unicodedata


def cells(text: str) -> int:
    """The columns that `text` takes in a terminal."""
    return sum(_cell(character) for character in text)


def _cell(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def pad(text: str, width: int) -> str:
    """`text` with spaces behind it, up to `width` columns."""
    return text + " " * (width - cells(text))


def wrap(text: str, width: int) -> list[str]:
    """`text` in lines of at most `width` columns, broken at spaces and between Chinese characters."""
    lines, line = [], ""
    for piece in _pieces(text):
        if line and cells(line + piece.rstrip()) > width:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _pieces(text: str) -> list[str]:
    """What a line may not break: a word, a Chinese character, each with the space or punctuation behind it."""
    pieces: list[str] = []
    for character in text:
        before = pieces[-1] if pieces else ""
        closing = character in "，。；：、？！）」”’…)]" or character.isspace()
        wide = _cell(character) == 2 or (before and _cell(before[-1]) == 2)
        if before and (closing or not (wide or before[-1].isspace())):
            pieces[-1] += character
        else:
            pieces.append(character)
    return pieces
