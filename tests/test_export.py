"""`export`: what can't be done is said before anything starts; what is delivered was loaded again, and is whole."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.conftest import Cli
from tests.plans import CPU, demo_facts
from toolbox import datasets, embedded, engines, exporting, exports, files, methods
from toolbox.commands.export import ExportOptions, _look_for_room, make_plan
from toolbox.config import Home, Settings
from toolbox.errors import DoesNotFitError, InputError, ToolboxError
from toolbox.exporting import checking
from toolbox.exports import gguf as known
from toolbox.plan import ExportPlan
from toolbox.ui.terminal import Terminal


def plan(home: Path, kind: str = "q8_0", **changes: object) -> ExportPlan:
    fields = {"format": "gguf", "output": home / "made", "datasets": [datasets.resolve("demo-heldout", Home(home))]}
    return ExportPlan(entry="toolbox.exporting:run", model=demo_facts(), device=CPU, type=kind, **(fields | changes))  # type: ignore[arg-type]


def test_a_gguf_is_what_went_in_and_says_so(home: Path, toolbox_cli: Cli) -> None:
    result = toolbox_cli("export", "--model", "demo", "--format", "gguf", "--json").done().json
    read = {reader["loaded_by"]: reader for reader in result["readers"]}
    assert read["transformers"]["perplexity"] == pytest.approx(result["perplexity_before"], rel=0.01)
    assert read["transformers"]["answers_equal"] == result["prompts"] > 3
    assert result["bytes"] < 0.3 * result["bytes_before"]
    made = next(Path(result["output"]).glob("*.gguf"))
    assert made.name == "demo-Q8_0.gguf"
    assert files.sha256(made) == result["hashes"]["output"][made.name]
    words = ["--model", result["output"], "--json"]
    refused = toolbox_cli("evaluate", *words)
    assert (refused.status, "is served and not evaluated" in refused.json["error"]["message"]) == (2, True)
    served = toolbox_cli("serve", *words, "--port", "0", "--dry-run")
    if engines.own_python("llamacpp", Home(home)):
        assert served.done().json["plan"]["engine"] == "llamacpp"
    else:
        assert (served.status, "llamacpp is not installed" in served.json["error"]["message"]) == (2, True)
    report = (home / "runs" / result["run"] / "report.md").read_text("utf-8")
    assert "transformers" in report
    again = toolbox_cli("export", "--model", "demo", "--format", "gguf", "--json")
    assert again.status == 2
    assert "nothing is overwritten" in again.json["error"]["message"]


def test_a_garbled_export_is_not_delivered(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = known.Architecture("qwen3", permuted=True, in_transformers=True)
    monkeypatch.setitem(known.ARCHITECTURES, "qwen3", wrong)
    with pytest.raises(ToolboxError, match="perplexity"):
        exporting.run(plan(home))
    assert not list(home.glob("*made*"))
    assert not list(home.glob(".made*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"quantization": "awq"}, "awq"),
        ({"model_type": "granite"}, "llama.cpp only"),
        ({"path": Path("/nowhere")}, "tokenizer"),
    ],
)
def test_what_gguf_can_not_hold_is_said_before_it_starts(home: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        exports.refuse(exports.FORMATS["gguf"], msgspec.structs.replace(demo_facts(), **change), Home(home))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"format": "gptq", "type": "wrong"}, "gptq has no type 'wrong'"),
        ({"format": "gguf", "type": "q4_k"}, "gguf has no type 'q4_k'"),
        ({"format": "gguf", "type": "q4_0", "adapter_only": True}, "for an adapter alone"),
        ({"format": "awq", "adapter_only": True}, "awq holds whole models only"),
    ],
)
def test_a_wrong_type_is_said_before_anything_is_looked_for(home: Path, words: dict[str, Any], message: str) -> None:
    session = Terminal(Home(home), Settings(), as_json=True, yes=True, dry_run=False)
    with pytest.raises(InputError, match=message):
        make_plan(ExportOptions(model="not/there", **words), session)


@pytest.mark.parametrize("init", ["pissa", "olora", "loftq"])
def test_an_adapter_that_changed_its_base_is_not_exported_as_if_it_had_not(init: str, tmp_path: Path) -> None:
    """An engine would add it to the base as it is, beginning and all."""
    files.write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "r": 4, "init_lora_weights": init})
    with pytest.raises(InputError, match=f"its beginning .{init}. was taken off"):
        methods.refuse_changed_base(tmp_path)
    files.write_json(tmp_path / "adapter_config.json", {"peft_type": "LORA", "r": 8, "init_lora_weights": True})
    methods.refuse_changed_base(tmp_path)


def test_k_quants_need_llamacpp_and_room_for_what_is_quantised(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    format = exports.FORMATS["gguf"]
    with pytest.raises(InputError, match=r"gguf q4_k_m .* llamacpp") as caught:
        exports.choose("gguf", "q4_k_m", True, Home(home))
    assert "engines install llamacpp" in caught.value.remedy
    assert exports.choose("gguf", "q8_0", True, Home(home)).python(Home(home), "q8_0", True) is None
    one = demo_facts().parameters * 4
    monkeypatch.setattr(files, "free_bytes", lambda path: int(1.1 * one))
    _look_for_room(plan(home, "q8_0"), format)
    with pytest.raises(DoesNotFitError):
        _look_for_room(plan(home, "q4_k_m"), format)


def test_a_tokenizer_is_never_guessed() -> None:
    tokenizer = files.read_json(embedded.MODEL / "tokenizer.json")
    assert known.kind_of(tokenizer) == "gpt2"
    assert known.splitting(tokenizer) is None
    assert known.alike(tokenizer, ["今天的天气 is fine, isn't it? 12345"]) is not None
    for one in known.SPLITTINGS:
        split = known._split_by(tokenizer, one)
        assert known.splitting(split) == one
    by_word = {**tokenizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]}}  # fmt: skip
    assert known.alike(by_word, ["今天的天气 is fine"]) is None


def test_a_stop_leaves_nothing(home: Path) -> None:
    class Stopping:
        stopping = True

        def __getattr__(self, name: str) -> object:
            return lambda *args, **kwargs: None

    with pytest.raises(ToolboxError, match="nothing was written"):
        exporting.run(plan(home), None, Stopping())  # type: ignore[arg-type]
    assert os.listdir(home) in ([], ["runs"])


def test_perplexity_is_of_the_answers() -> None:
    asked = checking.Questions(["a"], [[1, 2, 3]], [[False, True]], [], [])
    assert checking.Said([[-9.0, -1.0]], []).perplexity(asked) == pytest.approx(2.718281828)
    assert checking.Said([[-9.0, float("nan")]], []).perplexity(asked) == float("inf")
