"""The rows of ../shared/facts/memory.csv and bench/memory_elsewhere.csv as jobs: settings in words to settings."""

from typing import Any

from loops import ADAM_16, Job
from toolbox import networks

Row = dict[str, str]
ALL = ("query", "key", "value", "projection", "mlp", "head")
SHORT = {
    "query": ("q",), "key": ("k",), "value": ("v",), "projection": ("o", "output"), "mlp": (), "head": ("lm_head",),
}  # fmt: skip
RECIPE_RANK = 16
"""Of torchtune's 70B_lora.yaml and 405B_qlora.yaml (recipes/configs/llama3_1)."""
FLAGS = (
    "Baseline", "+ Packed", "+ Compile", "+ Chunked CE", "+ Activation Checkpointing", "+ optimizer_in_bwd",
    "+ Activation Offloading", "+ 8-bit AdamW",
)  # fmt: skip
"""Of torchtune's README, each on top of those before it; LoRA and QLoRA have all that are not of full tuning."""
UNPACKED = 128
"""Tokens of a row of Alpaca that is usual; its longest are not met in the steps that torchtune's README measured. Up to
some 600 the peak is at the end of the backward pass, where no row's length counts."""
SPOKEN = 100
"""Tokens of a prompt and its answer, where a table of generation doesn't say; each takes less than a megabyte."""
BLOCKWISE_8BIT = 2 * (1 + 4 / 256)
"""Two moments of a byte, with a scale of float32 for 256 (arXiv:2110.02861)."""


def config(shape: dict[str, Any], tied: bool) -> dict[str, Any]:
    """A config.json as transformers writes it, of an entry of model_configs.json."""
    kind = _kind(shape)
    # Qwen's first version halves it for each of its linears, and biases queries, keys and values as its second does.
    inner = shape["intermediate"] // (2 if "intermediate_note" in shape else 1)
    made = {
        "model_type": kind, "hidden_size": shape["hidden"], "intermediate_size": inner,
        "num_hidden_layers": shape["layers"], "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"], "head_dim": shape["head_dim"],
        "vocab_size": shape.get("padded_vocab", shape["vocab"]), "tie_word_embeddings": tied,
    }  # fmt: skip
    if kind == "falcon":  # only the larger ones have two norms and several heads of keys
        newer = shape["kv_heads"] > 1
        made |= {"ffn_hidden_size": shape["intermediate"], "num_kv_heads": shape["kv_heads"], "parallel_attn": True}
        made |= {"multi_query": not newer, "new_decoder_architecture": newer}
    share = {"phi-1_5": 0.5, "phi-2": 0.4}.get(shape.get("name", ""), 0.25)  # litgpt/config.py, `rotary_percentage`
    return made | ({"partial_rotary_factor": share} if kind in ("phi", "gpt_neox") else {})


def _kind(shape: dict[str, Any]) -> str:
    name, mlp = shape.get("name", "").lower(), shape.get("mlp", "")
    if mlp == "GemmaMLP":
        return "gemma2" if name.startswith("gemma-2-") else "gemma"
    if mlp == "GptNeoxMLP":
        return next((kind for kind in ("falcon", "phi") if name.startswith(kind)), "gpt_neox")
    if name.startswith("qwen3"):
        return "qwen3"
    return "qwen2" if shape.get("attn_bias") or name.startswith("qwen-") else "llama"


def shape_of(model: str, shapes: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """The entry for a model by the name that a table gives it; None where there is none."""
    wanted = model.lower().replace(" ", "-")
    for key, shape in shapes.items():
        names = {key.lower().replace(" ", "-"), shape.get("name", key).lower()}
        if any(wanted in (name, name.removesuffix("-hf"), f"{name}-1.3b") for name in names):
            return shape
    return None


def targets_of(words: str) -> tuple[str, ...]:
    """The adapted linears, of what a table says: query+value, q+v+o+mlp (…), all-linear."""
    said = words.split("(")[0].lower().replace("_proj", "").replace(" ", "").split("+")
    if any(word.startswith("all") for word in said):
        return ALL[:-1]
    return tuple(name for name in ALL if {name, *SHORT[name]} & set(said))


def litgpt_job(row: Row, shape: dict[str, Any]) -> Job:
    """A row of litgpt's tables. Its script of 2023 took the longest row first; its configs keep the order."""
    quantised = row["quant"].removeprefix("bnb.").removeprefix("none")
    return Job(
        network=networks.read(config(shape, tied=False)),
        method=row["method"],
        batch=int(row["batch"]),
        tokens=int(row["seq_len"] or SPOKEN),
        quantised=quantised,
        rank=int(row["lora_r"] or 0),
        targets=targets_of(row["lora_targets"]),
        softcaps=_kind(shape) == "gemma2",
        accumulates=row["grad_accum"] not in ("", "1"),
        repeats="resource-tables" not in row["path"],
        checkpointing=row["grad_checkpoint"] == "True",
        gpus=int(row["n_gpu"]),
        moments=0.0 if quantised else ADAM_16,  # bitsandbytes' PagedAdamW (litgpt/utils.py)
    )


def torchtune_job(row: Row, shape: dict[str, Any]) -> Job:
    """A row of torchtune's README: the recipe's settings, or one flag after another."""
    full, gpus, variant, said = row["method"] == "full", int(row["n_gpu"]), row["variant"], row["notes"]
    last = FLAGS.index(variant) if variant in FLAGS else len(FLAGS) - 1
    on = FLAGS[: last + 1] if variant else ()
    # The README measures the 8B recipes on a GPU of 24 GB and on one of 48, and doesn't say how they differ: the
    # recipes' settings give the first figures, those without checkpointing the second.
    checkpointing = "+ Activation Checkpointing" in on if variant else row["gpu"] != "A6000"
    optimizer = row["optimizer"]
    moments = 0.0 if "Paged" in optimizer and gpus == 1 else BLOCKWISE_8BIT if "8bit" in optimizer else ADAM_16
    return Job(
        network=networks.read(config(shape, tied=shape.get("tied") is True)),
        method=row["method"],
        batch=int(row["batch"]),
        tokens=UNPACKED if row["seq_kind"] == "unpacked" else int(row["seq_len"]),
        quantised="nf4-dq" if row["method"] == "qlora" else "",
        rank=0 if full else int(row["lora_r"] or RECIPE_RANK),
        targets=() if full else targets_of(row["lora_targets"]),
        dropout=False,
        accumulates=False,
        checkpointing=checkpointing,
        compiled="compile=True" in said or "compile on" in said,
        chunked="+ Chunked CE" in on or not variant,
        offloads="+ Activation Offloading" in on,
        steps_in_backward=full and gpus == 1 and ("in bwd" in optimizer or "in_bwd" in optimizer),
        moments=moments,
        gpus=gpus,
        weights_wait="CPU offload" in said,
    )
