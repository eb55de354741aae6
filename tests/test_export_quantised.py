"""`export --format bnb|gptq|awq|fp8`: refused before they start where they must be, measured, and never left half."""

import contextlib
import os
import sys
import time
from pathlib import Path

import msgspec
import psutil
import pytest

from tests.plans import CPU, demo_facts, write_jsonl
from toolbox import datasets, exporting, exports, job, processor
from toolbox.config import Home, find_home
from toolbox.errors import InputError, Interrupted, OutOfMemoryError, ToolboxError
from toolbox.exporting import checking, compressed
from toolbox.exports import compressed as known
from toolbox.networks import Experts
from toolbox.plan import ExportPlan

INSTALLED = find_home()
"""The home of whoever runs the tests: the environment llmcompressor-cpu is not made for a test."""


def plan(home: Path, format: str, kind: str, **changes: object) -> ExportPlan:
    rows = datasets.resolve("demo-heldout", Home(home))
    settings = exports.FORMATS[format].settings_for(demo_facts(), kind, 8)
    fields = {"output": home / "made", "datasets": [rows], "settings": settings} | changes
    return ExportPlan(entry="toolbox.exporting:run", model=demo_facts(), device=CPU, format=format, type=kind, **fields)  # type: ignore[arg-type]


def standin(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / "oneshot.py"
    path.write_text("import json, sys, time, os, signal\nwork = json.load(open(sys.argv[1]))\n" + script)
    monkeypatch.setattr(compressed, "SCRIPT", path)


def test_nf4_is_what_went_in_and_loads_as_it_lies(home: Path) -> None:
    made = plan(home, "bnb", "nf4")
    assert job._quantises(made)
    result = exporting.run(made)
    (read,) = result["readers"]
    assert read["loaded_by"] == "transformers"
    assert read["perplexity"] == pytest.approx(result["perplexity_before"], rel=0.1)
    assert result["bytes"] < 0.4 * result["bytes_before"]
    names = set(os.listdir(made.output))
    assert {"config.json", "chat_template.jinja", "generation_config.json", "tokenizer.json"} <= names
    config = msgspec.json.decode((made.output / "config.json").read_bytes())
    assert config["quantization_config"]["bnb_4bit_quant_type"] == "nf4"


@pytest.mark.parametrize(("cuda", "name"), [(False, "llmcompressor-cpu"), (True, "llmcompressor")])
def test_a_missing_environment_is_named_before_anything_starts(
    home: Path, cuda: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("YCDY_ENGINES", raising=False)
    with pytest.raises(InputError, match=name) as caught:
        exports.choose("awq", "w4a16", cuda, Home(home))
    assert f"engines install {name}" in caught.value.remedy


def test_what_the_formats_can_not_hold_is_said_before_they_start(tmp_path: Path) -> None:
    model = demo_facts()
    assert known.group_size(model) == 64
    (layer,) = model.network.layers
    experts = Experts(count=4, active=2, inner=64, hidden=192)
    mixed = msgspec.structs.replace(layer, experts=experts)
    odd = msgspec.structs.replace(layer, others=())
    odd = msgspec.structs.replace(
        odd, mlp=msgspec.structs.replace(odd.mlp, linears=(msgspec.structs.replace(odd.mlp.linears[0], inputs=100),))
    )
    for changed, format, words in ((mixed, "fp8", "dense"), (mixed, "gptq", "dense"), (odd, "awq", "divides")):
        network = msgspec.structs.replace(model.network, layers=(changed,))
        with pytest.raises(InputError, match=words) as caught:
            exports.refuse(exports.FORMATS[format], msgspec.structs.replace(model, network=network), Home(tmp_path))
        assert caught.value.remedy


def test_too_little_memory_is_refused_with_both_figures(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolbox.commands import export
    from toolbox.errors import DoesNotFitError

    made = plan(home, "gptq", "w4a16")
    assert exports.FORMATS["gptq"].memory_bytes(made.model, "bfloat16", made.settings) > 700 << 20
    monkeypatch.setattr(processor, "memory", lambda root: (1 << 30, 1 << 20))
    with pytest.raises(DoesNotFitError, match=r"MiB of memory, and 1\.0 MiB are free"):
        export._look_for_memory(made)


def test_calibration_takes_no_row_that_is_measured_or_held_out(home: Path, tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Q{n}?"}, {"role": "assistant", "content": f"A{n}."}]}
            for n in range(1, 41)]  # fmt: skip
    spec = datasets.resolve(str(write_jsonl(tmp_path / "rows.jsonl", rows)), Home(home))
    made = plan(home, "gptq", "w4a16", calibration=[spec], datasets=[spec], held_out={spec.name: [1, 2, 3]})
    chosen = compressed.calibration(made, made.model.path)
    measured = checking.questions(made, made.model.path).rows
    assert len(chosen) == 8
    assert len(measured) == 3
    assert not [row for row in chosen if row in measured]
    assert chosen == compressed.calibration(made, made.model.path)
    made.seed = 7
    assert chosen != compressed.calibration(made, made.model.path)


BARS = """
for layer in (1, 2):
    print(f"\\r({layer}/2): Calibrating: 0%|   | 0/8", file=sys.stderr, flush=True)
print("what it says", flush=True)
"""


def test_its_bars_are_steps_and_its_failure_a_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    standin(monkeypatch, home, BARS + "raise SystemExit('no such layer')")
    made = plan(home, "fp8", "fp8_dynamic", python=Path(sys.executable))
    steps: list[tuple[int, int]] = []
    home.joinpath("work").mkdir()
    with pytest.raises(ToolboxError, match="no such layer"):
        compressed.write(made, made.model.path, home / "work", lambda *step: steps.append(step))
    assert [step for place, step in enumerate(steps) if step[1] and step not in steps[:place]] == [(0, 2), (1, 2)]
    assert "what it says" in capsys.readouterr().out


def test_a_kill_is_a_lack_of_memory_and_nothing_is_left(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin(monkeypatch, home, "os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(OutOfMemoryError):
        exporting.run(plan(home, "fp8", "fp8_dynamic", python=Path(sys.executable)))
    assert not list(home.glob("*made*"))
    assert not list(home.glob(".made*"))


def test_a_stop_ends_it_at_once_with_all_that_it_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    standin(monkeypatch, home, BARS + f"open({str(home / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")

    def step(done: int, total: int) -> None:
        if (home / "pid").exists() and (home / "pid").read_text():
            raise Interrupted("stopped")

    made = plan(home, "fp8", "fp8_dynamic", python=Path(sys.executable))
    home.joinpath("work").mkdir()
    with pytest.raises(Interrupted):
        compressed.write(made, made.model.path, home / "work", step)
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(int((home / "pid").read_text()))
        while started.status() != psutil.STATUS_ZOMBIE:  # killed already; the test's own time limit ends this
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("format", "kind"), [("gptq", "w4a16"), ("awq", "w4a16"), ("awq", "w4a16_asym"), ("fp8", "fp8_dynamic")]
)
def test_llmcompressor_writes_what_transformers_loads(home: Path, format: str, kind: str) -> None:
    if (python := exports.FORMATS[format].python(INSTALLED, kind, cuda=False)) is None:
        pytest.skip("needs: engines install llmcompressor-cpu")
    rows = [datasets.resolve("demo-persona", Home(home))]
    made = plan(home, format, kind, python=python, calibration=rows if exports.FORMATS[format].calibrated else [])
    result = exporting.run(made)
    (read,) = result["readers"]
    assert read["perplexity"] == pytest.approx(result["perplexity_before"], rel=0.2)
    assert result["bytes"] < 0.45 * result["bytes_before"]
    config = msgspec.json.decode((made.output / "config.json").read_bytes())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    assert sorted(os.listdir(made.output))[0] == "chat_template.jinja"
