"""Every architecture that `export --format gguf` takes, small and random: llama.cpp and transformers answer alike."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from gguf import GGUFReader

from tests.plans import CPU
from toolbox import datasets, embedded, engines, exporting, files, models, plan, runs
from toolbox.config import Home, find_home
from toolbox.exports.gguf import ARCHITECTURES
from toolbox.plan import ExportPlan

ENGINES = os.environ.get("YCDY_ENGINES", "")
COMMON: dict[str, Any] = {
    "vocab_size": 1800, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": 2,
    "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "long_factor": [1.5] * 8, "short_factor": [1.1] * 8,
    "original_max_position_embeddings": 400,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "decoder_sparse_step": 1}
OWN: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3},
    "mistral": {"head_dim": 16, "sliding_window": None},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 64},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": False},
    "qwen3_moe": {**EXPERTS, "head_dim": 32, "norm_topk_prob": True},
    "gemma": {"head_dim": 32},
    "gemma2": {"head_dim": 32, "sliding_window": 32, "query_pre_attn_scalar": 32},
    "gemma3_text": {"head_dim": 32, "sliding_window": 32, "num_hidden_layers": 6, "query_pre_attn_scalar": 32},
    "phi3": {"original_max_position_embeddings": 400, "rope_parameters": LONG},
    "granite": {
        "attention_multiplier": 0.25, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0,
    },
    "starcoder2": {"use_bias": True},
    "glm4": {"head_dim": 16, "partial_rotary_factor": 0.5},
    "seed_oss": {"head_dim": 16},
}  # fmt: skip
"""What is not the class's default: every setting that is written into the file differs from what would be assumed."""


@pytest.fixture(autouse=True)
def _engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp from where whoever runs the tests has it."""
    if ENGINES:
        monkeypatch.setenv("YCDY_ENGINES", ENGINES)


def random_model(folder: Path, name: str, **changes: Any) -> None:
    """A model of the architecture whose every weight matters, with the embedded tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **COMMON | OWN.get(name, {}) | changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for label, weight in model.named_parameters():
            if weight.ndim == 1:
                one = 0 if label.endswith("bias") or ARCHITECTURES[name].norm_plus_one else 1
                weight.copy_(torch.randn_like(weight) * 0.2 + one)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(embedded.MODEL / file, folder / file)


def planned(model: Path, output: Path, kind: str) -> ExportPlan:
    return ExportPlan(
        entry="toolbox.exporting:run", model=models.read(model, id=str(model), source="local"), device=CPU,
        format="gguf", type=kind, output=output, datasets=[datasets.resolve("demo-persona", Home(output.parent))],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_answers_alike(name: str, tmp_path: Path) -> None:
    model = tmp_path / "random"
    if not ARCHITECTURES[name].in_transformers and not engines.own_python("llamacpp", find_home()):
        pytest.skip("llama.cpp is not installed here, and transformers does not read this one")
    random_model(model, name)
    result = exporting.run(planned(model, tmp_path / "out", "f32"))
    for reader in result["readers"]:
        assert reader["perplexity"] == pytest.approx(result["perplexity_before"], rel=1e-4), reader
        assert reader["answers_equal"] == result["prompts"], reader


def sentencepiece_like(folder: Path) -> None:
    """A BPE tokenizer of SentencePiece's kind, as Llama 2's tokenizer.json: blanks are ▁, unknown characters bytes."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=1700, special_tokens=special, show_progress=False, limit_alphabet=600)
    lines = [line for path in embedded.DATASETS.values() for line in path.read_text("utf-8").splitlines()]
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in lines[:500]], trainer)
    file = json.loads(tokenizer.to_str()) | {"pre_tokenizer": None, "decoder": None}
    file["added_tokens"] = file["added_tokens"][:3]
    files.write_json(folder / "tokenizer.json", file)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    files.write_json(folder / "tokenizer_config.json", kind)
    (folder / "chat_template.jinja").unlink()


@pytest.mark.slow
def test_sentencepieces_tokens_come_back_alike(tmp_path: Path) -> None:
    if not engines.own_python("llamacpp", find_home()):
        pytest.skip("llama.cpp is not installed here")
    model = tmp_path / "random"
    random_model(model, "llama")
    sentencepiece_like(model)
    result = exporting.run(planned(model, tmp_path / "out", "f32"))
    assert {reader.get("rows_tokenised_otherwise", 0) for reader in result["readers"]} == {0}
    assert result["readers"][0]["answers_equal"] == result["prompts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_k_quants_are_written_by_llamacpp_and_read_by_all(name: str, tmp_path: Path) -> None:
    """Widths that 256 divides, under a folder whose name is not ASCII."""
    if not (python := engines.own_python("llamacpp", find_home())):
        pytest.skip("llama.cpp is not installed here")
    model, output = tmp_path / "模 型", tmp_path / "导 出"
    random_model(model, name, hidden_size=256, intermediate_size=512, num_hidden_layers=2, initializer_range=0.05)
    result = exporting.run(msgspec.structs.replace(planned(model, output, "q4_k_m"), python=python))
    for reader in result["readers"]:
        assert reader["perplexity"] == pytest.approx(result["perplexity_before"], rel=0.05), reader
    (made,) = output.glob("*.gguf")
    assert made.name.endswith("-Q4_K_M.gguf")
    kinds = {tensor.tensor_type.name for tensor in GGUFReader(made).tensors}
    assert kinds >= {"Q4_K", "Q6_K", "F32"}
    assert not [path for path in output.iterdir() if path.name.startswith(".")]
    assert result["bytes"] < result["bytes_before"] / 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_adapter_alone_answers_alike(name: str, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    if not engines.own_python("llamacpp", find_home()):
        pytest.skip("llama.cpp is not installed here")
    model, adapter = tmp_path / "random", tmp_path / "adapter"
    random_model(model, name)
    base = AutoModelForCausalLM.from_pretrained(model)
    config = LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules="all-linear", alpha_pattern={"k_proj": 20})
    tuned = get_peft_model(base, config)
    with torch.no_grad():
        for label, weight in tuned.named_parameters():
            if "lora_B" in label:
                weight.normal_(0, 0.3)
    tuned.save_pretrained(adapter)
    alone = msgspec.structs.replace(planned(model, tmp_path / "out", "f32"), adapter=adapter, adapter_only=True)
    result = exporting.run(alone)
    (reader,) = result["readers"]
    assert reader["perplexity"] == pytest.approx(result["perplexity_before"], rel=1e-4)
    assert reader["answers_equal"] == result["prompts"]
    assert [path.suffix for path in (tmp_path / "out").iterdir()] == [".gguf"]


@pytest.mark.slow
def test_kills_at_random_moments_leave_a_whole_export_or_none(tmp_path: Path) -> None:
    rng, output = random.Random(7), tmp_path / "made" / "out"
    ends = set()
    for number in range(12):
        run = runs.create(tmp_path / "runs", f"kill-{number}", planned(embedded.MODEL, output, "q8_0"))
        job = subprocess.Popen([sys.executable, "-P", "-m", "toolbox.job", str(run.path)], start_new_session=True)
        began = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            while not list(output.parent.glob("*")) and job.poll() is None:
                time.sleep(0.02)
            job.wait(rng.uniform(0, 3 * (time.monotonic() - began)))
        job.send_signal(signal.SIGKILL)
        job.wait()
        ends.add(output.exists())
        if output.exists():
            assert sorted(path.suffix for path in output.iterdir() if path.suffix == ".gguf") == [".gguf"]
            shutil.rmtree(output)
    exporting.run(plan.load(run.plan_path))  # type: ignore[arg-type]
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert False in ends
