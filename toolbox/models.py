"""Models on this machine: where they lie, and the facts that planning needs; nothing of them is loaded or run."""

import difflib
import importlib.util
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from toolbox import embedded, files, model_config, model_files, networks, own_code, plugins
from toolbox.config import Home
from toolbox.errors import CorruptError, InputError, NotFoundError, ToolboxError
from toolbox.hub import store as hub
from toolbox.i18n import _
from toolbox.networks import Network

HUB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
WEIGHT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
SETTINGS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
"""Read by libraries that stumble over anything but a JSON object."""


class ModelFacts(msgspec.Struct, kw_only=True, frozen=True):
    """A base model, read from its config.json and its safetensors headers; nothing is loaded."""

    id: str
    """As the person names it: `demo`, `Qwen/Qwen2.5-7B-Instruct`, or a folder."""
    path: Path
    source: str
    """embedded, local, modelscope or huggingface."""
    revision: str = ""
    architecture: str
    """The first of `architectures`, as `Qwen3ForCausalLM`."""
    model_type: str
    parameters: int
    weights_bytes: int
    dtype: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    chat_template: bool
    quantization: str = ""
    """`quantization_config.quant_method` of a base that is already quantised."""
    own_code: dict[str, str] = {}
    """The Python files, with their hashes, that its repository brings and a person agreed to run; else empty."""
    guessed: bool = False
    """Whether its shape is guessed from its size: nothing of it is here, and nobody published it."""
    network: Network = Network(hidden=0, vocab=0, layers=())
    """What it is made of; of Llama's kind where a plan is older than this field."""

    def __post_init__(self) -> None:
        if self.network.layers:
            return
        made = networks.llama_like(
            self.hidden_size, self.intermediate_size, self.num_hidden_layers, self.num_attention_heads,
            self.num_key_value_heads, self.head_dim, self.vocab_size, self.tie_word_embeddings,
        )  # fmt: skip
        msgspec.structs.force_setattr(self, "network", made)

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of a decoder layer's linear modules, under Llama's names; most architectures use them."""
        hidden, inner = self.hidden_size, self.intermediate_size
        queries, keys = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys),
            "o_proj": (queries, hidden),
            "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
        }  # fmt: skip


def of_server(name: str) -> ModelFacts:
    """A model that only a server has: nothing is known of it but its name there."""
    return ModelFacts(
        id=name, path=Path(os.devnull), source="endpoint", architecture="", model_type="", parameters=0,
        weights_bytes=0, dtype="", hidden_size=0, intermediate_size=0, num_hidden_layers=0, num_attention_heads=1,
        num_key_value_heads=1, head_dim=0, vocab_size=0, max_position_embeddings=0, tie_word_embeddings=False,
        chat_template=True,
    )  # fmt: skip


class Family(msgspec.Struct, kw_only=True, frozen=True):
    """What a plugin says of a `model_type` that is not known, or known wrongly; what is left out stays as it is."""

    chat_template: str = ""
    """Jinja, for models of the family that bring none."""
    target_modules: list[str] = []
    """The linears that LoRA is put on where a recipe says all of them."""
    keys: dict[str, str] = {}
    """What config.json calls a field of ours otherwise than usual, as {"hidden_size": "n_channels"}."""
    prepare: Callable[[], None] = lambda: None
    """Called in the job before anything is loaded: the place for `AutoConfig.register` and the like."""


def family(model_type: str) -> Family | None:
    """The family that a plugin registered for `model_type`. Raises InputError where it registered something else."""
    if model_type not in plugins.names("model"):
        return None
    found = plugins.find("model", model_type)
    if not isinstance(found, Family):
        raise plugins.wrong("model", model_type, _("it is no {kind}").format(kind="toolbox.models.Family"))
    return found


def family_of(folder: Path) -> Family | None:
    """The family of the model in `folder`."""
    config = files.read_json(folder / "config.json")
    return family(str(config.get("model_type", ""))) if isinstance(config, dict) else None


def resolve(name: str, home: Home, weights: bool = True) -> ModelFacts:
    """The model that `name` means: `demo`, a folder (or the GGUF file in it), or OWNER/NAME downloaded before.

    Without `weights` a config.json alone will do, as for planning. Raises NotFoundError where it is not on this
    machine, InputError where it is not a model this toolbox can take, CorruptError where a file is torn.
    """
    if name in (embedded.NAME, str(embedded.MODEL)):
        return read(embedded.MODEL, id=embedded.NAME, source="embedded")
    folder = Path(name).expanduser()
    folder = folder.parent if folder.suffix == ".gguf" and folder.is_file() else folder
    if _is_folder(name, folder):
        hub.mark_used(folder.absolute(), home)
        return read(folder.absolute(), id=str(folder.absolute()), source="local", weights=weights, home=home)
    if HUB_ID.fullmatch(name):
        if copy := hub.local_copy(home, "model", name):
            hub.mark_used(copy, home)
            if manifest := hub.read_manifest(copy):
                return read(
                    copy, id=name, source=manifest.source, revision=manifest.revision, weights=weights, home=home
                )
        if _own(home.models / name):
            hub.mark_used(home.models / name, home)
            return read(home.models / name, id=name, source="local", weights=weights, home=home)
        if (home.models / name / hub.MANIFEST).exists():
            raise _damaged(name, home.models / name)
    raise unknown(name, home)


def known(home: Home) -> list[str]:
    """The names of all models on this machine, as `resolve` takes them."""
    folders = sorted(home.models.glob("*/*"))
    names = [f"{folder.parent.name}/{folder.name}" for folder in folders if not folder.name.startswith(".")]
    return [embedded.NAME, *(name for name in names if hub.local_copy(home, "model", name) or _own(home.models / name))]


def _own(folder: Path) -> bool:
    """Whether this is a model that was made here, as merged ones are: a download has a manifest that vouches for it."""
    return (folder / "config.json").is_file() and not (folder / hub.MANIFEST).exists()


def _is_folder(name: str, folder: Path) -> bool:
    looks_like_path = name.startswith(("/", ".", "~")) or not HUB_ID.fullmatch(name)
    try:
        if not name:
            return False
        return folder.is_dir() if looks_like_path else (folder / "config.json").is_file()
    except (OSError, ValueError):
        return False


def _damaged(name: str, folder: Path) -> ToolboxError:
    """Why a download can't be used, with the file's name where its weights say so."""
    try:
        read(folder, id=name, source="local")
    except ToolboxError as error:
        return error
    return CorruptError(
        _("The copy of {name} is not whole.").format(name=name), _("Fetch it again: download {name}").format(name=name)
    )


def unknown(name: str, home: Home) -> NotFoundError:
    """What to say of a name that leads to no model here: what is nearly called so, or where to get it."""
    near = difflib.get_close_matches(name, known(home), n=1)
    if near:
        remedy = _("Did you mean {name}?").format(name=near[0])
    elif HUB_ID.fullmatch(name):
        remedy = _("Fetch it first: download {name}").format(name=name)
    else:
        remedy = _("Name a folder, OWNER/NAME of a hub, or one of: {names}.").format(names=", ".join(known(home)[:5]))
    return NotFoundError(_("There is no model {name!r} on this machine.").format(name=name), remedy)


def read(
    folder: Path, *, id: str, source: str, revision: str = "", weights: bool = True, home: Home | None = None
) -> ModelFacts:
    """The facts of the model in `folder`; without `weights` they may be missing.

    `home`: where consent to code of its own may have been given. Raises as `resolve` does.
    """
    _refuse_adapter(folder)
    for name in SETTINGS:
        if (folder / name).is_file():
            model_files.json_object(folder / name)
    outer = model_files.json_object(folder / "config.json")
    own_code.refuse_kernels(folder, outer)
    code = _agreed_code(folder, id, outer, home)
    if not weights and not model_files.any_weights(folder):
        facts = facts_of_config(outer, id=id, source=source, revision=revision, path=folder)
        return msgspec.structs.replace(facts, chat_template=facts.chat_template or _has_chat_template(folder))
    if made := model_files.gguf(folder):
        facts = facts_of_config(outer, id=id, source=source, revision=revision, path=folder)
        return msgspec.structs.replace(
            facts, weights_bytes=made.stat().st_size, quantization="gguf", chat_template=_has_chat_template(folder)
        )
    tensors = model_files.tensors(folder)
    facts = msgspec.structs.replace(
        facts_of_config(outer, id=id, source=source, revision=revision, path=folder),
        weights_bytes=sum(tensor.data_offsets[1] - tensor.data_offsets[0] for tensor in tensors.values()),
        dtype=model_files.main_dtype(tensors),
        tie_word_embeddings=_tied(outer, tensors),
    )
    facts = msgspec.structs.replace(
        facts,
        chat_template=facts.chat_template or _has_chat_template(folder),
        network=msgspec.structs.replace(facts.network, tied=facts.tie_word_embeddings),
        own_code=code,
    )
    stored = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return msgspec.structs.replace(facts, parameters=facts.network.parameters if facts.quantization else stored)


def facts_of_config(
    config: dict[str, Any], *, id: str, source: str, revision: str = "", path: Path = Path()
) -> ModelFacts:
    """The facts of a model whose weights are not here, as its config.json tells them; counted, not read.

    Raises InputError where it doesn't say what every model has.
    """
    own = family(str(config.get("model_type", "")))
    values = {**config, **model_config.inner(config)}
    values |= {field: values.get(name) for field, name in own.keys.items()} if own else {}
    said = model_config.Config(path / "config.json", values)
    network = Network(hidden=0, vocab=0, layers=()) if own and own.keys else networks.read(config)
    hidden = said.number("hidden_size", "n_embd", "d_model", "dim", default=network.hidden or None)
    first = network.layers[0] if network.layers else None
    attention, mlp = (first.attention, first.mlp) if first else (None, None)
    heads = said.number("num_attention_heads", "n_head", "n_heads", default=attention.heads if attention else None)
    inner = mlp.inner if mlp else 4 * hidden
    dtypes = (values.get(name) for name in ("dtype", "torch_dtype"))
    dtype = next((dtype for dtype in dtypes if isinstance(dtype, str)), "bfloat16")
    facts = ModelFacts(
        id=id,
        path=path,
        source=source,
        revision=revision,
        architecture=said.first("architectures"),
        model_type=said.text("model_type"),
        parameters=0,
        weights_bytes=0,
        dtype=dtype,
        hidden_size=hidden,
        intermediate_size=said.number("intermediate_size", "n_inner", "ffn_dim", "d_ff", default=inner),
        num_hidden_layers=said.number(
            "num_hidden_layers", "n_layer", "num_layers", "n_layers", default=network.depth or None
        ),
        num_attention_heads=heads,
        num_key_value_heads=said.number("num_key_value_heads", default=attention.kv_heads if attention else heads),
        head_dim=said.number("head_dim", default=attention.head_dim if attention else max(1, hidden // heads)),
        vocab_size=said.number("vocab_size", default=network.vocab or None),
        max_position_embeddings=said.number("max_position_embeddings", "n_positions", default=2048),
        tie_word_embeddings=network.tied,
        chat_template=bool(own and own.chat_template),
        quantization=model_config.quantization(config),
        network=network,
    )
    counted = facts.network.parameters
    return msgspec.structs.replace(facts, parameters=counted, weights_bytes=counted * WEIGHT_BYTES.get(dtype, 2))


def is_masked(model: ModelFacts) -> bool:
    """Whether it fills blanks (BERT's kind) and writes no texts."""
    return model.architecture.endswith("ForMaskedLM")


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter, alone or beside its base: transformers would load that one too, and nobody would know."""
    if not (folder / "adapter_config.json").is_file():
        return
    if (folder / "config.json").is_file():
        raise InputError(
            _("{path} holds an adapter beside the base model, and both would be loaded.").format(path=folder),
            _("Move the files adapter_* to a folder of their own, and name that one with --adapter."),
        )
    raise InputError(
        _("{path} is an adapter, not a base model.").format(path=folder),
        _("Name its base with --model and the adapter with --adapter."),
    )


def _agreed_code(folder: Path, id: str, config: dict[str, Any], home: Home | None) -> dict[str, str]:
    """The code that has to run to load the model, if a person agreed to that; none for one that transformers knows.

    Raises InputError where nobody did.
    """
    known = family(str(config.get("model_type", ""))) or _native(str(config.get("model_type", "")))
    if known or not config.get("auto_map"):
        return {}
    code = own_code.of(folder)
    agreed = home and code and own_code.fingerprint(code) in own_code.consents(home)
    if not agreed or own_code.from_elsewhere(config):
        raise InputError(
            _("{path} needs program code of its own repository, which is not run unasked.").format(path=folder),
            _("Take another model, or see which code that is, and agree to it: {command}").format(
                command=f"models trust {id}"
            ),
        )
    return code


def _native(model_type: str) -> bool:
    """Whether the installed transformers has classes of its own for `model_type`; found out without importing it."""
    spec = importlib.util.find_spec("transformers")
    if not spec or not spec.submodule_search_locations or not model_type:
        return False
    mappings = Path(spec.submodule_search_locations[0]) / "models/auto/auto_mappings.py"
    return mappings.is_file() and f'("{model_type}", ' in mappings.read_text("utf-8")


def _tied(config: dict[str, Any], tensors: dict[str, model_files.Tensor]) -> bool:
    """The config's word where it has one in favour; else tied where no output matrix is stored."""
    stored = any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in tensors)
    return config.get("tie_word_embeddings") is True or not stored


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    path = folder / "tokenizer_config.json"
    return path.is_file() and bool(model_files.json_object(path).get("chat_template"))


def stored_as(folder: Path) -> str:
    """The `quant_method` of the model in `folder`, as its config.json says; empty for none."""
    config = files.read_json(folder / "config.json")
    return model_config.quantization(config) if isinstance(config, dict) else ""
