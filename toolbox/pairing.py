"""Whether an adapter can belong to a base model, by the shapes in the headers of both; no weights are read."""

import re
from pathlib import Path

from toolbox import files, model_files
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.models import ModelFacts

FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
LAYER = re.compile(r"\.layers\.(\d+)\.")


def refuse_foreign(adapter: Path, model: ModelFacts) -> None:
    """Raise InputError where a LoRA adapter was plainly made for another base: for more layers, or wider ones.

    Names that the base's files don't have are left to the merge itself: loading may rename and fuse tensors.
    """
    base = model_files.tensors(model.path)
    layers = {found[1] for name in base if (found := LAYER.search(name))}
    for name, tensor in model_files.header(adapter / "adapter_model.safetensors").items():
        layer = LAYER.search(name)
        if layer and layers and layer[1] not in layers:
            raise _foreign(adapter, model, _("it has a layer {number}").format(number=layer[1]))
        match = FACTOR.fullmatch(name)
        known = base.get(f"{match['module']}.weight") if match else None
        if match and known and len(known.shape) == len(tensor.shape) == 2:
            width = tensor.shape[1] if match["side"] == "A" else tensor.shape[0]
            if width not in known.shape:
                why = _("its {module} has {width}, the base's is {shape}").format(
                    module=match["module"], width=width, shape=" × ".join(map(str, known.shape))
                )
                raise _foreign(adapter, model, why)


def names_another(adapter: Path, model: ModelFacts) -> str:
    """The base that an adapter says it was made for, where that is not `model`; empty where it is, or none is said.

    Folders move and owners copy, so it is the same where a part of that path has the model's name, a hub's cache too.
    """
    said = named_base(adapter)
    parts = {part.rpartition("--")[2].replace("___", ".").lower() for part in Path(said).parts}
    here = Path(said).is_dir() and Path(said).samefile(model.path)
    return "" if here or parts & {Path(model.id).name.lower(), model.path.name.lower()} else said


def named_base(adapter: Path) -> str:
    """The base that an adapter says it was made for; empty where it says nothing."""
    config = files.read_json(adapter / "adapter_config.json")
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


def _foreign(adapter: Path, model: ModelFacts, why: str) -> InputError:
    said = named_base(adapter)
    remedy = _("It says that its base is {base}: name that with --model.").format(base=said) if said else ""
    return InputError(
        _("{path} was not made for {model}: {why}.").format(path=adapter, model=model.id, why=why),
        remedy or _("Name the base model that it was trained on with --model."),
    )
