"""Chat templates: those that `--chat-template` offers a base model, and how a template ends an answer.

One template goes the whole way: training renders with it, the adapter carries it, chat and serving apply it. What the
functions here call a tokenizer is transformers' own, which this module need not import.
"""

import functools
import re
from pathlib import Path
from typing import Any

import msgspec

from toolbox import files
from toolbox.errors import InputError, NotFoundError, TemplateError
from toolbox.i18n import _

FOLDER = Path(__file__).parent
FILE, GENERATION = "chat_template.jinja", "generation_config.json"
SPECIAL = re.compile(r"<[|｜][^|｜<>\s]+[|｜]>|<[a-z]+_of_[a-z]+>")
"""What in a template can only be meant as one token: `<|im_end|>`, `<end_of_turn>`."""
_ANSWER = "Rain"
"""An answer that no template contains."""


def known() -> list[str]:
    """The names of the shipped templates."""
    return sorted(path.stem for path in FOLDER.glob("*.jinja"))


def settled(wanted: str, model: Path, needed: bool) -> str:
    """The text of the template `wanted`, a name or a Jinja file, for the base model in a folder; empty: its own.

    `needed`: the model has none of its own, and the stage takes conversations. Raises InputError where the model's
    vocabulary lacks a token of the template: an adapter would have to bring a new row of embeddings for it, hundreds of
    megabytes that no engine serves unmerged, where another template does the same with the tokens there are.
    """
    if not wanted:
        if needed:
            raise TemplateError(
                _("The model has no chat template, so it is unknown how it takes a conversation."),
                _("Give it one with --chat-template ({names}), or take the model's -Instruct version.").format(
                    names=", ".join(_fitting(model))
                ),
            )
        return ""
    text = _read(wanted)
    if lacking := _lacking(text, model):
        raise InputError(
            _("The model's vocabulary has no {tokens}, which the chat template {name} needs.").format(
                tokens=" ".join(lacking), name=wanted
            ),
            _("These need no new token: {names}.").format(names=", ".join(_fitting(model))),
        )
    return text


def _read(wanted: str) -> str:
    shipped, path = FOLDER / f"{wanted}.jinja", Path(wanted).expanduser()
    if wanted in known():
        return shipped.read_text("utf-8").rstrip("\n")
    if not path.is_file():
        raise NotFoundError(
            _("There is no chat template {name!r}.").format(name=wanted),
            _("Chat templates: {names}; or a Jinja file.").format(names=", ".join(known())),
        )
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(_("{path} can't be read: {reason}.").format(path=path, reason=error)) from error


def _fitting(model: Path) -> list[str]:
    return [name for name in known() if not _lacking(_read(name), model)]


def _lacking(text: str, model: Path) -> list[str]:
    """The special tokens of a template that the vocabulary lacks; none where no tokenizer.json tells."""
    held = _vocabulary(model)
    return [token for token in dict.fromkeys(SPECIAL.findall(text)) if held and token not in held]


@functools.lru_cache(maxsize=2)
def _vocabulary(model: Path) -> frozenset[str]:
    file: dict[str, Any] = files.read_json(model / "tokenizer.json") or {}
    added = (str(token["content"]) for token in file.get("added_tokens", []))
    return frozenset((*added, *file.get("model", {}).get("vocab", ())))


@functools.lru_cache(maxsize=4)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """The tokens that stand for no text: those that the tokenizer names, and all that its vocabulary marks so."""
    marked = (index for index, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*tokenizer.all_special_ids, *marked])


def answer_end(tokenizer: Any) -> int | None:
    """The special token that the chat template puts after an answer, which a model has to learn and to stop at.

    It may be another than the tokenizer's eos_token (ChatML on a base model whose texts end in <|endoftext|>), or the
    beginning of the person's next turn (GLM). None where there is none.
    """
    if not tokenizer.chat_template:
        return None
    turns = [("user", "Weather?"), ("assistant", _ANSWER), ("user", "And now?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    _before, _answer, after = str(tokenizer.apply_chat_template(messages, tokenize=False)).partition(_ANSWER)
    for token in tokenizer(after, add_special_tokens=False)["input_ids"]:
        if token in special_ids(tokenizer):
            return int(token)
        if tokenizer.decode([token]).strip():
            return None
    return None


def stops(tokenizer: Any, own: int | list[int] | None) -> list[int]:
    """Every token that ends an answer: the model's `own`, the tokenizer's, and the template's.

    A model may state no end of its own, or nonsense, which is left out.
    """
    candidates = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, answer_end(tokenizer)]
    return sorted({token for token in candidates if isinstance(token, int)})


def leave(folder: Path, base: Path, tokenizer: Any, own: int | list[int] | None) -> None:
    """Put the template and the ends of answers beside what was trained, so that merging and serving take them over."""
    config = files.read_json(folder / GENERATION) or files.read_json(base / GENERATION) or {}
    ends = stops(tokenizer, own)
    if ends:
        config = {**config, "eos_token_id": ends if len(ends) > 1 else ends[0]}
    files.write_json(folder / GENERATION, config)
    if isinstance(tokenizer.chat_template, str):
        files.write_text(folder / FILE, tokenizer.chat_template)


def text_of(folder: Path) -> str:
    """The chat template in a model's or adapter's folder; several, as some models have, one after another under their
    names; empty where there is none, or a torn one."""
    path = folder / FILE
    if path.is_file():
        return path.read_text("utf-8", errors="replace")
    for name in ("tokenizer_config.json", "chat_template.json"):
        config = files.read_json(folder / name)
        held = config.get("chat_template") if isinstance(config, dict) else None
        if isinstance(held, str):
            return held
        if isinstance(held, list):
            return "\n".join(f"# {one.get('name')}\n{one.get('template')}" for one in held if isinstance(one, dict))
    return ""


class _Ends(msgspec.Struct):
    eos_token_id: int | list[int] | None = None


def ends_of(folder: Path) -> int | list[int] | None:
    """The ends that the generation_config.json of a folder states; None where it has none."""
    try:
        return msgspec.json.decode((folder / GENERATION).read_bytes(), type=_Ends).eos_token_id
    except (OSError, msgspec.DecodeError):
        return None
