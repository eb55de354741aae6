"""What a config.json may leave out: `python scripts/config_defaults.py` writes toolbox/networks/defaults.json.

transformers' config classes give values to whatever a file does not say; multimodal files leave most of their language
model's out. For each `model_type`: the defaults of numbers, switches and names (`values`), what its fields are called
elsewhere (`names`), and the types of its parts (`parts`). Made with the transformers that is installed.
"""

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassClassValidationError
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto
from transformers.utils import logging as transformers_logging

DESTINATION = Path(__file__).resolve().parent.parent / "toolbox" / "networks" / "defaults.json"
OF_NO_USE = (
    "token", "dropout", "_drop", "pdrop", "init", "eps", "epsilon", "jitter", "loss", "cache", "return", "output_",
    "problem_type", "chunk_size_feed_forward", "pretraining_tp", "audio", "mask_", "coef", "scaling", "version",
    "theta", "path", "name", "pruned", "beam", "semantic_", "pitch", "energy", "num_labels", "norm_topk",
)  # fmt: skip
"""Parts of names of fields that say nothing of shapes."""
OF_USE = ("num_experts_per_token", "mm_tokens_per_image", "image_seq_length", "num_experts_per_tok", "tokens_per_image")
PARTS = ("text_config", "vision_config", "llm_config", "language_config", "thinker_config")


def main() -> None:
    transformers_logging.set_verbosity_error()
    logging.disable()
    warnings.filterwarnings("ignore")
    wanted = {*modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES}
    found: dict[str, dict[str, Any]] = {}
    while new := wanted - set(found):
        for kind in new:
            config = CONFIG_MAPPING.get(kind)
            known: dict[str, dict[str, Any]] = {}
            if config:
                known = {"values": values(config), "names": dict(config.attribute_map), "parts": parts(config)}
            found[kind] = {key: value for key, value in known.items() if value}
            wanted |= {part["model_type"] for part in known.get("parts", {}).values()}
    lines = (f"{json.dumps(kind)}: {json.dumps(found[kind], separators=(',', ':'))}" for kind in sorted(found))
    DESTINATION.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def values(config: Any) -> dict[str, Any]:
    """The class's own defaults, before it derives any from others; None counts as none."""
    found = {}
    for field in dataclasses.fields(config):
        name, value = field.name, field.default
        if name not in OF_USE and any(part in name for part in OF_NO_USE):
            continue
        if type(value) in (bool, int, str) or (type(value) is float and 0 < value < 64):
            found[name] = value
    return found


def parts(config: Any) -> dict[str, dict[str, Any]]:
    """Each part that the class makes where none is given: its `model_type`, and what differs from that one's own."""
    try:
        made = config()
    except (ValueError, TypeError, StrictDataclassClassValidationError) as error:
        print(f"{config.__name__}: {error}".splitlines()[0])
        return {}
    found = {}
    for name in PARTS:
        part = getattr(made, name, None)
        if kind := getattr(part, "model_type", ""):
            own = values(type(part))
            here = part.to_dict()
            found[name] = {"model_type": kind} | {key: here[key] for key in own if here.get(key, own[key]) != own[key]}
    return found


if __name__ == "__main__":
    main()
