"""What a job draws: NVML's counter and power, asked through pynvml of a fake driver, and RAPL's files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hardware import T4, with_gpus

from toolbox import power

ASK = """
import json, time
from toolbox import device, power
begun = time.monotonic()
meters = [power.Energy("cuda", index) for index in range(4)]
held = [power.process_bytes(index) for index in range(4)]
time.sleep(0.3)
joules = [meter.watt_hours() * 3600 for meter in meters]
seconds = time.monotonic() - begun
limits = [found.power_w for found in device.probe().devices[:3]]
print(json.dumps({"joules": joules, "seconds": seconds, "limits": limits, "held": held}))
"""


def test_a_gpus_energy_is_counted_or_integrated_or_not_known() -> None:
    gpus = [
        {**T4, "limit_w": 70, "power_w": 60, "counts_energy": True, "processes": [[0, "python", 1234]]},
        {**T4, "limit_w": 300, "power_w": 250},
        T4,
    ]
    environ = {**os.environ, **with_gpus(*gpus)}
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, env=environ, check=True)
    found = json.loads(done.stdout)
    assert found["limits"] == [70, 300, 0]
    for joules, power_w in zip(found["joules"], (60, 250), strict=False):
        assert power_w * 0.3 <= joules <= power_w * found["seconds"]
    assert found["joules"][2:] == [0, 0]
    assert found["held"] == [1234 << 20, 0, 0, 0]


def test_processors_are_counted_past_the_end_of_their_counters(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:0:0", "intel-rapl:1"):
        (tmp_path / power.RAPL / name).mkdir(parents=True)
        (tmp_path / power.RAPL / name / "energy_uj").write_text("900000000\n")
        (tmp_path / power.RAPL / name / "max_energy_range_uj").write_text("1000000000\n")
    energy = power.Energy("cpu", root=tmp_path)
    (tmp_path / power.RAPL / "intel-rapl:0" / "energy_uj").write_text("100000000\n")
    (tmp_path / power.RAPL / "intel-rapl:1" / "energy_uj").write_text("950000000\n")
    assert energy.watt_hours() * 3600 == pytest.approx(200 + 50)
    assert power.Energy("cpu", root=tmp_path / "nothing").watt_hours() == 0
