"""What a config.json tells of a model: as many parameters as transformers makes of it, whatever the architecture."""

import contextlib
import json
import subprocess
import sys
from typing import Any

import pytest
from hardware import QWEN_7B

from toolbox import models, networks
from toolbox.errors import InputError

TEXT = [
    "llama", "mistral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "mixtral", "gemma", "gemma2", "gemma3_text", "phi",
    "phi3", "gpt2", "opt", "bloom", "falcon", "gpt_neox", "stablelm", "starcoder2", "deepseek_v2", "deepseek_v3",
    "granite", "granitemoe", "olmo", "olmo2", "cohere", "glm4", "glm4_moe", "gpt_oss",
]  # fmt: skip
VISION = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava", "llava_next", "internvl", "paligemma", "gemma3"]
USUAL = ["qwen2", "gemma3_text", "phi", "falcon", "deepseek_v3", "qwen2_5_vl", "llava"]
FEW = {"num_hidden_layers": 4, "n_layer": 4, "depth": 3}


def shortened(config: Any) -> dict[str, Any]:
    """A config's values with few layers, as a config.json has them; what is derived from their number is left out."""
    values = json.loads(config.to_json_string())
    for part in (values, *(value for value in values.values() if isinstance(value, dict))):
        part.pop("layer_types", None)
        part.update({key: few for key, few in FEW.items() if key in part})
    return values


def counted(kind: str) -> tuple[int, int]:
    """(as `networks` counts, as transformers does) of that `model_type`, wide as it is by default, with few layers."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    values = shortened(CONFIG_MAPPING[kind]())
    maker: Any = AutoModelForImageTextToText if kind in VISION else AutoModelForCausalLM
    with torch.device("meta"):
        model = maker.from_config(CONFIG_MAPPING[kind].from_dict(values))
    return networks.read(values).parameters, sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("kinds", [USUAL, pytest.param([*TEXT, *VISION], marks=pytest.mark.slow)], ids=["usual", "all"])
def test_as_many_parameters_as_transformers_makes(kinds: list[str]) -> None:
    found = {kind: counted(kind) for kind in kinds}
    assert {kind: here - there for kind, (here, there) in found.items() if here != there} == {}


def test_what_a_file_leaves_out_is_what_its_class_gives() -> None:
    """LLaVA 1.5 says next to nothing of its Vicuna."""
    told = {"model_type": "llava", "text_config": {"model_type": "llama", "vocab_size": 32064}}
    assert networks.read(told).text_parameters == 6_738_939_904
    assert networks.read({"model_type": "gpt2", "n_embd": 1024, "n_head": 16, "n_layer": 24}).parameters == 354_823_168


def test_a_small_qwen() -> None:
    config = {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    }  # fmt: skip
    network = networks.read(config)
    assert network.parameters == network.active_parameters == 494_032_768
    assert network.linears["k_proj"] == (896, 128, 24)
    facts = models.facts_of_config(config, id="Qwen/Qwen2.5-0.5B", source="registry")
    assert (facts.parameters, facts.weights_bytes, facts.network) == (494_032_768, 988_065_536, network)
    with pytest.raises(InputError):
        models.facts_of_config({"model_type": "unheard-of"}, id="x", source="registry")


@pytest.mark.parametrize("value", [None, "7", -1, 1.5, [], {}, 10**30, True])
@pytest.mark.parametrize(
    "key", ["num_hidden_layers", "num_attention_heads", "hidden_size", "layer_types", "rope_parameters"]
)
def test_whatever_a_file_says_is_read_or_refused(key: str, value: Any) -> None:
    config = {**QWEN_7B, key: value}
    with contextlib.suppress(InputError):
        assert models.facts_of_config(config, id="x", source="local").parameters >= 0


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = "import sys, toolbox.networks as n; n.read({'model_type': 'llava'}); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "numpy"} & set(loaded)
