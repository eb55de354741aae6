"""What runs took against what was predicted: whose runs count, how much, and that nothing torn is in the way."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Cli
from plans import CPU, demo_facts, finetune_plan

from toolbox import calibration, memory
from toolbox.calibration import Factors, Figures, Line
from toolbox.memory import Load

PREDICTED = Figures(peak_bytes=1000, steps_s=10, rest_s=10, tokens=1000)


def line(measured: Figures, **changes: Any) -> Line:
    fields: dict[str, Any] = {
        "run": "r", "when": 0.0, "device": calibration.device_key(CPU), "implementation": "cpu float32",
        "kind": "adapter", "model": "demo", "parameters": demo_facts().parameters, "stage": "sft", "method": "lora",
        "batch": "1 × 1", "max_length": 512, "predicted": PREDICTED, "said": PREDICTED, "seen_bytes": 1000,
    }  # fmt: skip
    return Line(measured=measured, **{**fields, **changes})


def factors(home: Path, *lines: Line) -> Factors:
    for found in lines:
        calibration.note(home, found)
    return calibration.factors(home, demo_facts(), finetune_plan(home), CPU, "sft")


TWICE = Figures(peak_bytes=2000, steps_s=20, rest_s=20, tokens=1000)


def test_runs_of_this_device_correct_the_next_plan(home: Path) -> None:
    found = factors(home, *[line(TWICE)] * 9)
    assert found.runs == 9
    assert 1.8 < found.memory <= 2
    assert (found.speed, found.rest) == (pytest.approx(2, rel=0.05), pytest.approx(2, rel=0.05))
    assert found.tokens == 1
    plan = finetune_plan(home)
    load = Load(rows=100, longest_tokens=200, mean_tokens=100)
    raw = memory.estimate(plan.model, plan, CPU, load)
    now = calibration.corrected(raw, found)
    assert sum(now.parts_bytes.values()) == now.peak_bytes == pytest.approx(raw.peak_bytes * found.memory, rel=1e-6)
    assert now.time_s == pytest.approx(2 * raw.time_s, rel=0.05)
    assert now.time_low_s <= now.time_s <= now.time_high_s
    noted = calibration.line(msgspec.structs.replace(plan, estimate=now), "again", TWICE)
    assert noted.predicted.peak_bytes == pytest.approx(raw.peak_bytes, abs=2)
    assert noted.predicted.time_s == pytest.approx(raw.time_s)


@pytest.mark.parametrize(
    "other",
    [
        {"device": "AMD EPYC × 64"}, {"implementation": "cpu bfloat16"}, {"kind": "quantized"},
        {"kind": "adapter+rollout"},
    ],
)  # fmt: skip
def test_other_devices_and_kinds_never_count(home: Path, other: dict[str, str]) -> None:
    assert factors(home, line(TWICE, **other)) == Factors()


def test_models_of_another_size_count_only_where_there_are_none_alike(home: Path) -> None:
    large = line(TWICE, parameters=7_000_000_000, model="large")
    assert factors(home, large).runs == 1
    assert factors(home, line(PREDICTED)).speed == 1


def test_few_runs_move_it_less_and_none_moves_it_without_bounds(home: Path) -> None:
    one = factors(home, line(TWICE)).memory
    many = factors(home, *[line(TWICE)] * 8).memory
    assert 1 < one < many <= 2
    absurd = factors(home, *[line(Figures(peak_bytes=10**9, steps_s=1e9, rest_s=1e9, tokens=1))] * 10)
    assert absurd.memory == calibration.BOUNDS["memory"]
    assert absurd.speed == pytest.approx(calibration.BOUNDS["speed"])
    assert absurd.margin <= 0.5


def test_the_margin_is_no_smaller_than_the_spread_that_was_seen(home: Path) -> None:
    peaks = [800, 900, 1000, 1100, 1500]
    found = factors(home, *(line(Figures(peak_bytes=peak)) for peak in peaks))
    assert found.memory * 1000 * (1 + found.memory_spread) >= max(peaks) - 1


def test_memory_that_ran_out_counts_as_a_lower_bound(home: Path) -> None:
    """1500 were there and not enough for what was predicted as 1000; 700 that were too few say nothing."""
    found = factors(home, line(Figures(peak_bytes=1500), out_of_memory=True))
    assert found.memory > 1
    assert found.memory * (1 + found.memory_spread) >= 1.5 - 1e-9
    assert factors(home, line(Figures(peak_bytes=700), out_of_memory=True)).memory == found.memory


@pytest.mark.parametrize("torn", [b"", b"\n", b'{"run": "r", "when"', b"\x00\xff\n[]\n{}\n", b'{"run": 5}\n'])
def test_a_torn_file_is_in_nobodys_way(home: Path, torn: bytes) -> None:
    calibration.note(home, line(TWICE))
    with (home / calibration.NAME).open("ab") as file:
        file.write(torn)
    calibration.note(home, line(TWICE))
    assert len(calibration.read(home)) == 2
    assert factors(home).runs == 2


def test_planning_and_its_history_live_with_a_torn_file(toolbox_cli: Cli, home: Path) -> None:
    home.mkdir(exist_ok=True)
    (home / calibration.NAME).write_bytes(b"\xff\xfe not a line\n{")
    assert toolbox_cli("plan", "--dataset", "demo-persona", "--json").done().json["calibrated_by_runs"] == 0
    said = Figures(peak_bytes=1500, steps_s=10, rest_s=10, tokens=1000)
    calibration.note(home, line(TWICE, run="one", said=said))
    answer = toolbox_cli("plan", "--history", "--json", "--lang", "en").done()
    (run,) = answer.json["runs"]
    assert run["run"] == "one"
    assert run["errors"]["peak_bytes"] == [-0.5, -0.25]
    assert answer.json["median_errors"]["time_s"] == {"before_calibration": 0.5, "calibrated": 0.5, "runs": 1}
