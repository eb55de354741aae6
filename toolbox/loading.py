"""Base models, tokenizers and adapters from folders: safetensors only, and no code that came with the weights."""

import logging
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.utils import logging as transformers_logging

from toolbox import files, methods, model_files, models, own_code, startup, templates
from toolbox.errors import InputError, TokenizerError, lacks_memory
from toolbox.i18n import _

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A log is read by people: no bars drawn into it, and nothing that they can't act on.
transformers_logging.disable_progress_bar()
transformers_logging.set_verbosity_error()
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

_PREPARED: list[models.Family] = []
SHOWN_CHARS = 200
SAFE: dict[str, Any] = {"trust_remote_code": False, "local_files_only": True}


def trust(path: Path) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`: `SAFE`, but for a model whose own code a person agreed to (own_code)."""
    return SAFE | {"trust_remote_code": own_code.may_run(path)}


def tokenizer(path: Path, adapter: Path | None = None, chat_template: str = "") -> "PreTrainedTokenizerBase":
    """The tokenizer of the model in `path`, with the template that a plan gives it (its text), else its family's.

    An adapter's folder may bring its own template, or a tokenizer. Raises TokenizerError where there is none.
    """
    family = _prepared(path)
    own = adapter and (adapter / "tokenizer_config.json").is_file()
    folder = adapter if adapter and own else path
    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, **trust(path))
    except (ValueError, OSError) as error:
        raise _no_tokenizer(folder) from error
    if len(found) <= len(found.added_tokens_decoder):  # where there is no file, transformers makes one without words
        raise _no_tokenizer(folder)
    if adapter and (adapter / templates.FILE).is_file():
        chat_template = (adapter / templates.FILE).read_text("utf-8")
    found.chat_template = chat_template or found.chat_template or (family and family.chat_template) or None
    return found


def _no_tokenizer(folder: Path) -> TokenizerError:
    return TokenizerError(
        _("{path} holds no tokenizer.").format(path=folder),
        _("Copy tokenizer.json and tokenizer_config.json from where the model came from, or fetch it again."),
    )


def _prepared(path: Path) -> models.Family | None:
    """The family that a plugin registered for the model in `path`, once its classes are known to transformers."""
    family = models.family_of(path)
    if family and family not in _PREPARED:
        family.prepare()
        _PREPARED.append(family)
    return family


def base_model(
    path: Path, dtype: str, device: str, quantization: dict[str, Any] | None = None, scores: bool = False
) -> "PreTrainedModel":
    """The causal language model in `path`, on `device` ("cpu", "mps", "cuda:0"), with the towers it may have.

    `dtype` is torch's name ("bfloat16"). `quantization`: keyword arguments of transformers' `BitsAndBytesConfig`.
    `scores`: as a reward model, whose head gives one number in the language head's place. On "meta" it has shapes and
    no numbers, made of config.json alone.
    """
    _prepared(path)
    if device == "meta":
        return _shapes(path, dtype, quantization, scores)
    quantized: Any = None
    if quantization:
        from transformers import BitsAndBytesConfig

        quantized = BitsAndBytesConfig(**quantization)
    elif models.stored_as(path) == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        # Without it, 5.23 finds no place for zero points (a mismatch of shapes), and rounds activations on a processor.
        quantized = CompressedTensorsConfig(dequantize=True)
    kind, config = kind_of(path, scores)
    try:
        model: PreTrainedModel = kind.from_pretrained(
            path, config=config, dtype=getattr(torch, dtype), quantization_config=quantized, device_map=device,
            use_safetensors=True, **trust(path),
        )  # fmt: skip
    except ImportError as error:  # a tower that is a library's of its own: Gemma 3n's is timm's
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise InputError(
            _("{model} needs a package that is not installed: {reason}").format(model=config.model_type, reason=reason),
            _("Take a model whose parts are all transformers' own."),
        ) from error
    startup.end()
    if quantization:
        _keep_as_stored(model)
    return model


def masked_model(path: Path, device: str) -> "PreTrainedModel":
    """The masked language model in `path`, in float32, since it is asked for small differences."""
    _prepared(path)
    model: PreTrainedModel = AutoModelForMaskedLM.from_pretrained(
        path, dtype=torch.float32, device_map=device, use_safetensors=True, **trust(path)
    )
    startup.end()
    return model


def kind_of(path: Path, scores: bool = False) -> tuple[Any, Any]:
    """The auto class that loads the model in `path`, and the config to load it with.

    Of a model that also speaks, that is the part that thinks, which has a config of its own. Of one that sees,
    AutoModelForCausalLM would load the language model alone, and an adapter would fit no engine's whole model.
    Raises InputError where transformers has no language model for that config.json.
    """
    try:
        config: Any = AutoConfig.from_pretrained(path, **trust(path), **({"num_labels": 1} if scores else {}))
    except (ValueError, KeyError, OSError) as error:
        raise _unknown(path, " ".join(str(error).split())[:SHOWN_CHARS]) from error
    config = getattr(config, "thinker_config", config)
    kinds = (AutoModelForSequenceClassification,) if scores else (AutoModelForMultimodalLM, AutoModelForCausalLM)
    mapped = getattr(config, "auto_map", None) or {} if own_code.may_run(path) else {}
    for kind in kinds:
        if type(config) in kind._model_mapping or kind.__name__ in mapped:
            return kind, config
    raise _unknown(path, _("no language model belongs to {kind}").format(kind=config.model_type))


def _unknown(path: Path, reason: str) -> InputError:
    return InputError(
        _("transformers can't make a language model of {path}: {reason}.").format(
            path=path / "config.json", reason=reason.rstrip(".")
        ),
        _("Take a model that transformers knows by itself, or name a --plugin that brings its classes."),
    )


def towers(model: "PreTrainedModel") -> list[str]:
    """The names of the modules beside the language model and its head: towers for images and sound, projectors."""
    if model.config.get_text_config() is model.config:
        return []
    names = {module: name for name, module in model.named_modules()}
    text, head = model.get_decoder(), model.get_output_embeddings()
    parts = names[text].split(".") if names[text] else []
    found, parent = [], model
    for part in parts:
        found += [names[child] for name, child in parent.named_children() if name != part and child is not head]
        parent = getattr(parent, part)
    return found


def _shapes(path: Path, dtype: str, quantization: dict[str, Any] | None, scores: bool) -> "PreTrainedModel":
    kind, config = kind_of(path, scores)
    with torch.device("meta"):
        model: PreTrainedModel = kind.from_config(
            config, dtype=getattr(torch, dtype), trust_remote_code=own_code.may_run(path)
        )
    startup.end()
    if quantization:
        from transformers import BitsAndBytesConfig
        from transformers.integrations import replace_with_bnb_linear
        from transformers.quantizers.base import get_keys_to_not_convert

        settings = BitsAndBytesConfig(**quantization)
        kept = [*get_keys_to_not_convert(model), *(settings.llm_int8_skip_modules or [])]
        replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=settings)
        model.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks for it
    return model


def _keep_as_stored(model: Any) -> None:
    """Keep 4-bit weights as they are through evaluations.

    On processors with avx512_bf16, bitsandbytes repacks them for inference at the first forward in eval mode, for good:
    gradients through them are silently lost from then on, and DoRA, which reads the weights, answers nonsense
    (bitsandbytes 0.50.2, nn/modules.py, Linear4bit.forward).
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


def adapter_keys(adapter: Path) -> dict[str, tuple[int, ...]]:
    """The names of the tensors in an adapter, and their shapes."""
    found = model_files.header(adapter / "adapter_model.safetensors")
    return {name: tuple(tensor.shape) for name, tensor in found.items()}


def make_room(model: "PreTrainedModel", adapter: Path) -> None:
    """Give `model` as many embeddings as an adapter brings that was trained with tokens added."""
    keys = {name.replace(".base_layer.", "."): shape for name, shape in adapter_keys(adapter).items()}
    own = (shape for name, shape in keys.items() if name.endswith(EMBEDDINGS) and len(shape) == 2)
    embeddings: Any = model.get_input_embeddings()
    rows, held = next(own, (0,))[0], embeddings.weight.shape[0]
    if rows > held:
        model.resize_token_embeddings(rows, mean_resizing=False)


def with_adapter(model: "PreTrainedModel", adapter: Path, trainable: bool = False) -> "PreTrainedModel":
    """`model` with the adapter in the folder `adapter` on top: peft's, or LoReFT's interventions."""
    method = methods.of_adapter(adapter)
    if method and method.kind == "loreft":
        from toolbox import loreft

        return loreft.load(model, adapter)
    from peft import PeftModel

    make_room(model, adapter)
    return put_on(
        model, adapter, lambda: PeftModel.from_pretrained(model, adapter, is_trainable=trainable, local_files_only=True)
    )


def put_on(base: "PreTrainedModel", folder: Path, load: Callable[[], Any], name: str = "default") -> Any:
    """What `load` makes of `base`: the model with the adapter in `folder` as `name`, all of which has found its place.

    peft itself leaves out what has none without a word, so that an adapter whose tensors are called otherwise does
    nothing at all. Raises InputError where tensors have no place, are missing, or where peft can't make the adapter.
    """
    missing: set[str] = set()
    unexpected: list[str] = []
    own_name = re.compile(rf"(.*)\.{re.escape(name)}(?=\.|$)")
    """All before the adapter's name: it is a part of each of its keys, and may begin or be a module's, too."""

    def heed(module: torch.nn.Module, keys: Any) -> None:
        missing.update(own_name.sub(r"\1", key) for key in keys.missing_keys)
        unexpected.extend(keys.unexpected_keys)

    hook = base.register_load_state_dict_post_hook(heed)
    try:
        tuned = load()
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if lacks_memory(error):
            raise
        raise _unfit(folder, _reason(error)) from error
    finally:
        hook.remove()
    unplaced, unfilled = fill_adapter(tuned, folder, name)
    if unexpected and unplaced:
        raise _unfit(folder, _named(_("{count} of its tensors have no place in it, first {name}"), unplaced))
    if lacking := unfilled & missing:
        raise _unfit(folder, _named(_("it holds nothing for {count} tensors that it speaks of, first {name}"), lacking))
    return tuned


def fill_adapter(model: Any, folder: Path, name: str = "default") -> tuple[set[str], set[str]]:
    """Put what peft saved in `folder` into the adapter `name` of `model` once more, by the names it was saved under.

    Loading, peft renames them as it would a checkpoint's, and then finds no place for those of some architectures
    (0.21.2 with UnlimitedOcr): the adapter would silently be as good as untrained. Returns the names that found none,
    and those of the model's adapter that are not in the file: peft may have placed them by other names.
    """
    from peft import get_peft_model_state_dict

    saved = load_file(folder / "adapter_model.safetensors")
    held = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    with torch.no_grad():
        for key in saved.keys() & held.keys():
            if saved[key].shape == held[key].shape:
                held[key].copy_(saved[key])
    twice = {key for key in saved if key.replace(".modules_to_save", "") in held}  # so peft saves resized heads again
    return saved.keys() - held.keys() - model.state_dict().keys() - twice, held.keys() - saved.keys()


def _unfit(folder: Path, reason: str) -> InputError:
    return InputError(
        _("The adapter in {path} does not fit this model: {reason}.").format(path=folder, reason=reason.rstrip(".")),
        _("Name the model that it was trained on with --model, or save the adapter again with peft."),
    )


def _reason(error: Exception) -> str:
    """The first line of what peft says that says something; the name of what it does not know."""
    if isinstance(error, KeyError):
        return _("peft does not know {name}").format(name=error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return next((line for line in lines if not line.endswith(":")), lines[0])[:SHOWN_CHARS]


def _named(said: str, names: set[str]) -> str:
    return said.format(count=len(names), name=min(names))


def reward_model(path: Path, dtype: str, device: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The model for sequence classification with one label in `path`, or of the adapter there, and its tokenizer.

    Raises InputError where it is none, or has no chat template.
    """
    adapter = files.read_json(path / "adapter_config.json")
    base = Path(str(adapter["base_model_name_or_path"])) if isinstance(adapter, dict) else path
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=getattr(torch, dtype), device_map=device, use_safetensors=True,
        **({"num_labels": 1} if base != path else {}), **SAFE,
    )  # fmt: skip
    if base != path:
        model = with_adapter(model, path)
    scorer = tokenizer(base)
    if model.config.num_labels != 1 or not scorer.chat_template:
        raise InputError(
            _("{path} can't judge answers: it has {count} labels, or no chat template.").format(
                path=path, count=model.config.num_labels
            ),
            _("Take a reward model with one label, as the stage rm makes it."),
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = scorer.pad_token_id if scorer.pad_token_id is not None else scorer.eos_token_id
    return model.eval().requires_grad_(False), scorer


def decoder_layers(model: Any) -> list[torch.nn.Module]:
    """The decoder's layers, in order. Raises InputError where they are in no one list."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList) and len(module) == count]
    if not lists:
        raise InputError(
            _("The layers of {model} can't be told apart.").format(model=type(model).__name__),
            _("Take another method, as lora or full."),
        )
    return list(lists[0])


def torch_device(kind: str, index: int = 0) -> str:
    """torch's name of a `Device`'s kind and index."""
    return f"cuda:{index}" if kind == "cuda" else kind
