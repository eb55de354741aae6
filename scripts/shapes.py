"""Writes toolbox/registry/shapes.json: shapes of published models, each with its source.

    PYTHONPATH=scripts python scripts/shapes.py --litgpt litgpt/config.py --configs FOLDER

`--litgpt`: that file of the package litgpt. `--configs`: a folder of OWNER--NAME_config.json, as the package
aiconfigurator-core ships it (model_configs). Besides these, the defaults of transformers' own classes for the
checkpoint that each names, and scripts/shapes.csv, which people write by hand out of papers and repositories.
What a former run found and no source has now is kept.
"""

import argparse
import csv
import importlib.metadata
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from registry import SHAPES as TABLE
from registry import write_shapes

ROOT = Path(__file__).parent.parent
MODELS = TABLE.with_name("models.csv")
BY_HAND = Path(__file__).with_name("shapes.csv")
Shape = tuple[str, dict[str, Any], str]
"""(OWNER/NAME, values of its config.json, where they stand)"""

NOISE = re.compile(
    r"token(?!izer)|_ids?$|^id2|2id$|rope|rotary|dropout|pdrop|eps|init|version|dtype|auto_map|architectures|quantiz"
    r"|use_cache|torch|output_|label|problem|_name|attn_implementation|transformers|pretraining|coef|scal|softcap"
    r"|softmax|summary|norm_topk|topk_method|scoring|ep_size|seq_aux|aux|freeze|hash|time_step|keys_to|mean|image_size"
    r"|window|theta|template|verbosity|cross_att|chunk|indexer_types|slice|checkpoint"
    r"|return|encoder_decoder|beam|length|sample|early_|legacy|invalid|bfloat16|logits|ignore|placeholder|feature_"
    r"|is_decoder|strategy|implementation|ngram|tie_encoder|seq_len|top_k$|pos_emb"
)
"""Keys of a config.json that say nothing of widths and numbers."""
KEPT = {"num_experts_per_tok", "partial_rotary_factor", "moe_topk"}
PLANNED = ("text_config", "vision_config", "audio_config", "thinker_config", "llm_config", "language_config")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litgpt", type=Path)
    parser.add_argument("--configs", type=Path)
    given = parser.parse_args()
    found = msgspec.json.decode(TABLE.read_bytes()) if TABLE.exists() else {}
    sources = [by_hand(), defaults()]
    sources += [litgpt(given.litgpt)] if given.litgpt else []
    sources += [published(given.configs)] if given.configs else []
    for name, config, source in (shape for shapes in sources for shape in shapes):
        found[name] = {"source": source, "config": config}
    models = _models()
    types, used = {row["model_type"] for row in models}, {part for row in models for part in row["shape"].split("+")}
    found = {
        name: shape
        for name, shape in found.items()
        if shape["config"].get("model_type") in types or name in used or name.startswith("vision/")
    }
    write_shapes(found)
    print(f"{len(found)} shapes in {TABLE.relative_to(ROOT)}")


def published(folder: Path) -> Iterator[Shape]:
    """Whole config.json files."""
    for path in sorted(folder.glob("*_config.json")):
        if not path.name.endswith("_hf_quant_config.json"):
            name = path.name.removesuffix("_config.json").replace("--", "/")
            yield name, plain(json.loads(path.read_bytes())), f"{name}, config.json"


def by_hand() -> Iterator[Shape]:
    """scripts/shapes.csv: a model a line, `rest` as KEY=NUMBER words, where it stands."""
    with BY_HAND.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            name, source, words = row.pop("model"), row.pop("source"), row.pop("rest").split()
            model_type, inner = row.pop("model_type"), {key: int(value) for key, value in row.items() if value}
            config: dict[str, Any] = {"model_type": model_type}
            for key, value in [*inner.items(), *(_pair(word) for word in words)]:
                part, _dot, own = key.rpartition(".")
                (config.setdefault(f"{part}_config", {}) if part else config)[own] = value
            yield name, config, source


def defaults() -> Iterator[Shape]:
    """transformers' classes: their defaults are meant to be the shape of the checkpoint that they name."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    version = importlib.metadata.version("transformers")
    for model_type in CONFIG_MAPPING:
        kind = CONFIG_MAPPING[model_type]
        named = r'checkpoint="([^"]+)"(?:(?!checkpoint=)[\s\S])*?class ' + kind.__name__ + r"\b"
        found = re.search(named, inspect.getsource(sys.modules[kind.__module__]))
        try:
            values = kind().to_dict()
        except Exception:  # some classes need arguments; theirs are no shape of anything
            continue
        yield (
            f"transformers/{model_type}",
            plain(values),
            (f"transformers {version}, defaults of {kind.__name__}" + (f", made for {found[1]}" if found else "")),
        )


def litgpt(path: Path) -> Iterator[Shape]:
    """litgpt's table of models."""
    module = types.ModuleType("litgpt_config")
    sys.modules[module.__name__] = module
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
    for entry in module.__dict__["configs"]:
        config = module.__dict__["Config"](**entry)
        if model_type := _litgpt_type(config):
            name = f"{config.hf_config['org']}/{config.hf_config['name']}"
            yield name, _from_litgpt(config, model_type), "litgpt, litgpt/config.py"


def _litgpt_type(config: Any) -> str:
    """The model_type that transformers gives the model; empty where litgpt's class of it says too little."""
    name = config.name.lower()
    families = {
        "gemma-2": "gemma2",
        "gemma-3": "gemma3_text",
        "gemma": "gemma",
        "codegemma": "gemma",
        "phi-3": "phi3",
        "phi-4": "phi3",
        "phi": "phi",
        "mixtral": "mixtral",
        "olmo-2": "olmo2",
        "olmo": "olmo",
        "qwen3": "qwen3",
        "qwq": "qwen2",
        "qwen2": "qwen2",
        "pythia": "gpt_neox",
        "mistral": "mistral",
        "mathstral": "mistral",
    }
    found = next((family for begun, family in families.items() if name.startswith(begun)), "")
    if found in ("qwen3",) and config.n_expert:
        return "qwen3_moe"
    if not found and config.mlp_class_name == "LLaMAMLP" and config.norm_class_name == "RMSNorm":
        return "llama"
    return found


def _from_litgpt(config: Any, model_type: str) -> dict[str, Any]:
    """litgpt's names as transformers'. Whether embeddings are tied it does not say; the families' habit is known."""
    tied = model_type.startswith("gemma") or config.name.startswith(("SmolLM2", "Llama-3.2", "Phi-4-mini"))
    tied |= bool(re.match(r"Qwen2\.5(-Coder|-Math)?-(0\.5|1\.5|3)B|Qwen3-(0\.6|1\.7|4)B", config.name))
    values = {
        "model_type": model_type,
        "hidden_size": config.n_embd,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_query_groups,
        "head_dim": config.head_size,
        "vocab_size": config.padded_vocab_size,
        "max_position_embeddings": config.block_size,
        "tie_word_embeddings": tied,
    }
    if config.n_expert:
        experts = "num_experts" if model_type == "qwen3_moe" else "num_local_experts"
        values |= {experts: config.n_expert, "num_experts_per_tok": config.n_expert_per_token}
    if model_type == "qwen3_moe":
        values["moe_intermediate_size"] = config.moe_intermediate_size
    return values


def _models() -> list[dict[str, str]]:
    """The registry's lines."""
    with MODELS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def plain(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config.json tells widths and numbers."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            if key in PLANNED and (inner := plain(value)):
                kept[key] = inner
        elif (key in KEPT or not NOISE.search(key)) and (
            isinstance(value, bool | int | str)
            or (key in KEPT and value)
            or (isinstance(value, list) and key in LISTS and _tells(value))
        ):
            kept[key] = value
    return kept


LISTS = (
    "layer_types",
    "mlp_layer_types",
    "moe_layers",
    "mlp_only_layers",
    "hybrid_layer_pattern",
    "layers_block_type",
    "intermediate_size",
    "block_configs",
    "num_attention_heads",
    "num_key_value_heads",
    "attn_type_list",
)


def _tells(values: list[Any]) -> bool:
    """Whether a list of layers says more than that all attend."""
    return bool(values) and not all(
        isinstance(value, str) and value.endswith("attention") and "linear" not in value for value in values
    )


def _pair(word: str) -> tuple[str, int | bool | str]:
    key, _equals, value = word.partition("=")
    return key, int(value) if value.isdigit() else {"true": True, "false": False}.get(value, value)


if __name__ == "__main__":
    main()
