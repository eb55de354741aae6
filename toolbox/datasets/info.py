"""LLaMA-Factory's `dataset_info.json`: an index of data sets, with unknown keys refused instead of ignored."""

import difflib
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox.errors import InputError, NotFoundError
from toolbox.i18n import _

NAME = "dataset_info.json"

COLUMNS = {
    "prompt": "prompt", "query": "input", "response": "response", "history": "history", "messages": "messages",
    "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected", "kto_tag": "label",
}  # fmt: skip
"""Its keys of `columns`, and what they are called here."""

MEDIA = ("images", "videos", "audios")
TAGS = {
    "role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
    "observation_tag": "tool", "function_tag": "tool_call", "system_tag": "system_role",
}  # fmt: skip


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set of the index, in its own words."""

    file_name: str = ""
    hf_hub_url: str = ""
    ms_hub_url: str = ""
    om_hub_url: str = ""
    script_url: str = ""
    cloud_file_name: str = ""
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    ranking: bool = False
    subset: str | None = None
    split: str = "train"
    folder: str | None = None
    num_samples: int | None = None
    columns: dict[str, str] = {}
    tags: dict[str, str] = {}

    def mapping(self) -> dict[str, str]:
        """Its columns and tags under the keys of `--columns`; pictures, video and sound have none.

        A prompt alone is how LLaMA-Factory names the documents of pre-training.
        """
        if self.columns.keys() == {"prompt"}:
            return {"text": self.columns["prompt"]}
        text = {COLUMNS[key]: column for key, column in self.columns.items() if key in COLUMNS}
        return text | {TAGS[key]: tag for key, tag in self.tags.items()}


def is_index(path: Path) -> bool:
    """Whether a file is such an index: by name, or an object whose values say where data sets lie."""
    if path.name == NAME:
        return True
    if path.suffix != ".json" or path.stat().st_size > 16 << 20:
        return False
    try:
        whole = msgspec.json.decode(path.read_bytes())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    places = {"file_name", "hf_hub_url", "ms_hub_url"}
    return (
        isinstance(whole, dict) and bool(whole) and all(isinstance(v, dict) and places & set(v) for v in whole.values())
    )


def entries(path: Path) -> dict[str, Entry]:
    """All entries of an index. Raises InputError naming the entry and the key that is unknown or wrong."""
    try:
        whole = msgspec.json.decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), type=dict[str, dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise InputError(
            _("{path} is not an index of data sets: {reason}.").format(path=path, reason=error),
            _("It is an object: names, and for each an object with file_name or hf_hub_url."),
        ) from error
    return {name: _entry(path, name, value) for name, value in whole.items()}


def find(path: Path, name: str) -> Entry:
    """The entry `name` of an index. Raises NotFoundError naming those there are."""
    known = entries(path)
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    if not name:
        sentence = _("{path} is an index of {count} data sets, not one.").format(path=path, count=len(known))
    else:
        sentence = _("{path} has no data set {name!r}.").format(path=path, name=name)
    raise NotFoundError(
        sentence,
        _("Did you mean {name}?").format(name=f"{path}:{near[0]}")
        if near
        else _("Name one of them: {name}").format(name=f"{path}:{next(iter(known), 'NAME')}"),
    )


def _entry(path: Path, name: str, value: dict[str, Any]) -> Entry:
    for part, known in (("columns", (*COLUMNS, *MEDIA)), ("tags", tuple(TAGS))):
        inner = value.get(part, {})
        for key in inner if isinstance(inner, dict) else ():
            if key not in known:
                raise _unknown(path, name, f"{part}.{key}", key, known)
    for key in value:
        if key not in Entry.__struct_fields__:
            raise _unknown(path, name, key, key, Entry.__struct_fields__)
    try:
        return msgspec.convert(value, Entry)
    except msgspec.ValidationError as error:
        raise InputError(
            _("{path}, data set {name}: {reason}.").format(path=path, name=name, reason=error), _("Mend that entry.")
        ) from error


def _unknown(path: Path, name: str, place: str, key: str, known: tuple[str, ...]) -> InputError:
    near = difflib.get_close_matches(key, known, n=1)
    return InputError(
        _("{path}, data set {name}: there is no key {key!r}.").format(path=path, name=name, key=place),
        _("Did you mean {name}?").format(name=near[0]) if near else _("Keys: {keys}.").format(keys=" ".join(known)),
    )
