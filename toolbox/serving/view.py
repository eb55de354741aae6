"""The folder that an engine is given: links to a model's weights and texts, and to nothing that could run."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from toolbox import files, templates
from toolbox.engines import GGUF, SERVED, TUNED, Engine
from toolbox.errors import InputError
from toolbox.i18n import _

SAFE = {".json", ".safetensors", ".gguf", ".jinja", ".txt", ".model", ".tiktoken"}
"""What an engine may see: no Python, no pickles, whatever a model's folder holds besides."""
OWN = ("tokenizer", "special_tokens_map", "added_tokens", "chat_template", "vocab", "merges", "generation_config")
"""How the files begin that an adapter brings over the base's: what it was trained with is what it is served with."""
POOLING = "1_Pooling/config.json"
"""What sentence-transformers writes beside a model that makes vectors; the engine sees it as pooling.json."""

WITHOUT_FIRST_BOS = (
    "{{% set rendered %}}{}{{% endset %}}"
    "{{{{ rendered[bos_token | length:] if rendered.startswith(bos_token) else rendered }}}}"
)
"""A chat template around another."""


def make(folder: Path, model: Path, adapters: Sequence[Path], engine: Engine) -> list[str]:
    """Lay out `model` as SERVED below `folder`, and `adapters` for `engine`; returns their names.

    An engine without the feature "adapters" gets the one there may be as files beside the base's, which transformers
    reads as a complete model with an embedded adapter: no name then. What one without the feature "templates" serves
    the base with is what its adapters were trained with. Raises InputError for an adapter without safetensors.
    """
    linked = {name: path for name, path in _safe(model).items() if not name.startswith("adapter_")}
    if (model / POOLING).is_file():
        linked["pooling.json"] = (model / POOLING).absolute()
    tuned = [_adapter_files(adapter) for adapter in adapters]
    if tuned and "templates" not in engine.features:
        linked |= {name: path for name, path in tuned[0].items() if name.startswith(OWN)}
    if tuned and "adapters" not in engine.features:
        (embedded,), tuned = tuned, []
        linked |= {name: path for name, path in embedded.items() if name.startswith("adapter_")}
    names = [TUNED.format(number=number) for number in range(1, len(tuned) + 1)]
    for name, mine in zip(names, tuned, strict=True):
        _link(folder / name, mine)
    _link(folder / SERVED, linked)
    if engine.adds_bos:
        _leave_bos_to_the_tokenizer(folder / SERVED)
    return names


def _adapter_files(adapter: Path) -> dict[str, Path]:
    if not (adapter / "adapter_model.safetensors").is_file() or not (adapter / "adapter_config.json").is_file():
        raise InputError(
            _("{path} is not an adapter: it needs adapter_config.json and adapter_model.safetensors.").format(
                path=adapter
            ),
            _("Name the folder that a finetune run calls adapter/."),
        )
    return _safe(adapter)


def _safe(folder: Path) -> dict[str, Path]:
    return {
        GGUF if path.suffix == ".gguf" else path.name: path.absolute()
        for path in sorted(folder.iterdir())
        if path.suffix in SAFE
    }


def _link(folder: Path, targets: dict[str, Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for old in folder.iterdir():
        old.unlink()
    for name, target in targets.items():
        (folder / name).symlink_to(target)


def _leave_bos_to_the_tokenizer(served: Path) -> None:
    """Keep the template from beginning with a bos_token, which lmdeploy puts before every prompt once more.

    Its 0.18 tokenises what the template rendered with special tokens (processors/multimodal.py), so Llama 3, Mistral
    and Gemma would see two, where in training there was one.
    """
    text, tokenizer = template(served), served / "tokenizer.json"
    if "bos_token" not in text or not tokenizer.is_file():
        return
    from tokenizers import Tokenizer

    config = files.read_json(served / "tokenizer_config.json") or {}
    first = Tokenizer.from_file(str(tokenizer)).encode("").tokens[:1]
    if first and _content(config.get("bos_token")) == first[0]:
        path = served / templates.FILE
        path.unlink(missing_ok=True)
        files.write_text(path, WITHOUT_FIRST_BOS.format(text.removesuffix("\n")))


def template(folder: Path) -> str:
    """The text of a model's one template; empty where it has none, or several."""
    path = folder / templates.FILE
    config = files.read_json(folder / "tokenizer_config.json") or {}
    text = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
    return text if isinstance(text, str) else ""


def _content(token: object) -> object:
    """A token of tokenizer_config.json: a text, or an object with it."""
    return token.get("content") if isinstance(token, dict) else token


class _Generation(msgspec.Struct):
    do_sample: bool = False
    temperature: float | None = None


def default_temperature(model: Path) -> float:
    """What the model's generation_config.json asks for; 0 (greedy) where it does not sample."""
    try:
        config = msgspec.json.decode((model / "generation_config.json").read_bytes(), type=_Generation)
    except (OSError, msgspec.DecodeError):
        return 0.0
    return 1.0 if config.do_sample and config.temperature is None else (config.temperature or 0.0) * config.do_sample
