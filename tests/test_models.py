"""Models on this machine: by name and by folder, and every way in which a folder can be wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from hardware import QWEN_7B, write_model

from toolbox import embedded, models
from toolbox.config import Home
from toolbox.errors import CorruptError, InputError, NotFoundError
from toolbox.hub import store

SMALL = {
    **QWEN_7B, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip


def test_the_embedded_model_has_a_name(tmp_path: Path) -> None:
    facts = models.resolve("demo", Home(tmp_path))
    assert (facts.source, facts.id, facts.chat_template) == ("embedded", "demo", True)
    assert 1e6 < facts.parameters < 3e6
    assert facts.weights_bytes == pytest.approx((facts.path / "model.safetensors").stat().st_size, rel=0.01)


def test_facts_of_a_large_model_are_read_from_headers_alone(tmp_path: Path) -> None:
    facts = models.resolve(str(write_model(tmp_path / "m", QWEN_7B)), Home(tmp_path))
    assert facts.parameters == pytest.approx(7.6156e9, rel=1e-4)
    assert facts.weights_bytes == 2 * facts.parameters
    assert (facts.dtype, facts.head_dim, facts.tie_word_embeddings) == ("bfloat16", 128, False)
    assert facts.linears["k_proj"] == (3584, 512)


def test_facts_equal_what_transformers_counts(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = tmp_path / "m"
    AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL)).save_pretrained(folder, max_shard_size="100KB")
    facts = models.resolve(str(folder), Home(tmp_path))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert len(list(folder.glob("*.safetensors"))) > 1
    assert facts.parameters == sum(weight.numel() for weight in model.parameters())
    assert (facts.dtype, facts.architecture) == ("float32", "Qwen2ForCausalLM")


def test_a_model_made_here_has_a_name(tmp_path: Path) -> None:
    home = Home(tmp_path)
    write_model(home.models / "merged" / "mine", SMALL)
    assert models.known(home) == ["demo", "merged/mine"]
    assert models.resolve("merged/mine", home).source == "local"


def test_a_multimodal_models_language_part_is_read(tmp_path: Path) -> None:
    outer = {"architectures": ["XForConditionalGeneration"], "model_type": "x", "text_config": SMALL}
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "config.json").write_text(json.dumps(outer))
    facts = models.resolve(str(folder), Home(tmp_path))
    assert (facts.hidden_size, facts.model_type, facts.architecture) == (64, "x", "XForConditionalGeneration")


def test_a_quantised_base_is_counted_by_its_shapes(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {**SMALL, "quantization_config": {"quant_method": "gptq"}})
    facts = models.resolve(str(folder), Home(tmp_path))
    assert facts.quantization == "gptq"
    linears, biases, norms = 64 * 64 * 3 + 64 * 128 * 3, 64 * 2, 2 * 64
    assert facts.parameters == 2 * (linears + biases + norms) + 2 * 512 * 64 + 64


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("demi", "Did you mean demo?"),
        ("Qwen/Qwen2.5-7B", "download Qwen/Qwen2.5-7B"),
        ("/nowhere", "demo"),
        ("; touch x", "demo"),
        ("$(touch x)", "demo"),
        ("../../nowhere", "demo"),
        ("a/..", "demo"),
        ("-rf", "demo"),
        ("模型", "demo"),
        ("a\nb", "demo"),
        ("\0", "demo"),
        ("", "demo"),
    ],
)
def test_an_unknown_model_is_one_sentence(tmp_path: Path, name: str, remedy: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        models.resolve(name, Home(tmp_path))
    assert remedy in caught.value.remedy
    assert "\n" not in caught.value.message


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", SMALL)
    weights = folder / "model.safetensors"
    for size in (weights.stat().st_size - 1, 100, 8, 3, 0):
        with weights.open("r+b") as file:
            file.truncate(size)
        with pytest.raises(CorruptError, match=r"model\.safetensors"):
            models.resolve(str(folder), Home(tmp_path))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotFoundError, match="model-00002-of-00002"):
        models.resolve(str(folder), Home(tmp_path))


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/b", 7])
def test_an_index_can_not_lead_outside(tmp_path: Path, name: Any) -> None:
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CorruptError, match="index"):
        models.resolve(str(folder), Home(tmp_path))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"vocab_size": 1.5}, "vocab_size"),
        ({"architectures": "Qwen"}, "architectures"),
        ({"model_type": ["qwen2"]}, "model_type"),
        ({"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}}, "program code"),
    ],
)
def test_a_config_that_is_wrong_is_an_input_error(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "config.json").write_text(json.dumps({**SMALL, **change}))
    (folder / "modeling_own.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    with pytest.raises(InputError, match=word):
        models.resolve(str(folder), Home(tmp_path))
    assert not (tmp_path / "canary").exists()


def test_own_code_beside_a_class_of_transformers_is_left_alone(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", {**SMALL, "auto_map": {"AutoModel": "modeling_own.Own"}})
    assert models.resolve(str(folder), Home(tmp_path)).model_type == "qwen2"


@pytest.mark.parametrize("text", ["", "[]", "{", "7", "\x00\xff"])
def test_a_torn_config_is_named(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "m", SMALL)
    (folder / "config.json").write_text(text)
    with pytest.raises(CorruptError, match=r"config\.json"):
        models.resolve(str(folder), Home(tmp_path))


@pytest.mark.parametrize(
    ("there", "word"), [("pytorch_model.bin", "pickles"), ("adapter_config.json", "adapter"), ("README.md", "missing")]
)
def test_a_folder_that_is_no_model_says_what_it_is(tmp_path: Path, there: str, word: str) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / there).write_text("{}")
    if there.endswith(".bin"):
        (folder / "config.json").write_text(json.dumps(SMALL))
    with pytest.raises(InputError, match=word):
        models.resolve(str(folder), Home(tmp_path))


@pytest.mark.parametrize("torn", ["model.safetensors", "tokenizer_config.json"])
def test_a_download_that_is_torn_is_named_and_not_offered(tmp_path: Path, torn: str) -> None:
    home = Home(tmp_path)
    folder = write_model(home.models / "owner" / "name", SMALL)
    records = [store.FileRecord(p.name, p.stat().st_size, "", p.stat().st_mtime_ns, False) for p in folder.iterdir()]
    store.write_manifest(
        folder,
        store.Manifest(
            kind="model", id="owner/name", source="modelscope", endpoint="", revision="v1", files=records, fetched_at=0
        ),
    )
    facts = models.resolve("owner/name", home)
    assert (facts.source, facts.revision) == ("modelscope", "v1")
    (folder / torn).write_bytes(b"{}")
    with pytest.raises(CorruptError, match=r"safetensors|not whole"):
        models.resolve("owner/name", home)
    assert models.known(home) == ["demo"]


def test_the_embedded_model_is_demo_by_its_folder_too(tmp_path: Path) -> None:
    """An adapter tuned on it names the folder; clients and plans name the model."""
    assert models.resolve(str(embedded.MODEL), Home(tmp_path)).id == embedded.NAME
