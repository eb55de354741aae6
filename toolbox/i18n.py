"""The person's language: gettext catalogues under locale/, English in the source, Chinese complete."""

import gettext
import os
from pathlib import Path

LANGUAGES = ("zh", "en")
_LOCALE = Path(__file__).with_name("locale")
_current: gettext.NullTranslations = gettext.NullTranslations()
_language = "en"


def detect(environ: "os._Environ[str] | dict[str, str]" = os.environ) -> str:
    """The language of the environment: the first of LC_ALL, LC_MESSAGES and LANG that is set decides."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def use(language: str) -> None:
    """Switch all messages from now on to `language` ("zh" or "en")."""
    global _current, _language
    _language = language if language in LANGUAGES else "en"
    _current = gettext.translation("toolbox", _LOCALE, [_language], fallback=True)


def language() -> str:
    return _language


def _(message: str) -> str:
    """`message` in the person's language."""
    return _current.gettext(message) if message else ""


def sentences(*texts: str) -> str:
    """Sentences one after the other; Chinese puts no space between them."""
    return ("" if _language == "zh" else " ").join(filter(None, texts))


def N_(message: str) -> str:
    """Marks a message for the catalogue where it is defined, to be translated by `_` where it is shown."""
    return message
