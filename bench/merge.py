"""What merging takes, beside peers on the very same files: `python bench/merge.py [ROUNDS]`.

Under PEERS_HOME lie the models, small (82M) and big (1.3B in 4 files), their adapters, and the peers, each in an
environment of its own (../shared/tools/peers). Rounds are interleaved, since machines are noisy: the ratios hold better
than the times. CPU seconds and the largest resident memory are those of whole processes, imports and hashes counted:

- `cp`: the files copied, and nothing merged;
- `merge`: ours up to the delivered model, with the hashes of all that went in and came out, without the proof;
- `merge, proved`: the same with the proof;
- `peft`: what people write by hand; `swift export`; `llamafactory-cli export`.

Every result is compared with peft's, bit by bit.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
PEERS = Path(os.environ.get("PEERS_HOME") or Path(tempfile.gettempdir()) / "peers")
ASSETS, CASES = PEERS / "assets", os.environ.get("CASES", "small,big").split(",")
LEAST_CPU, LEAST_MEMORY, MOST_PROOF = 2.5, 5.0, 0.5
"""How many times less CPU and memory than the best peer; the proof's share of the best peer's time."""
TOOLS = ("peft", "cp", "merge", "merge, proved", "swift", "llamafactory")
OURS = """
import sys
from pathlib import Path
from types import SimpleNamespace
from toolbox import datasets, models, startup
from toolbox.config import find_home
from toolbox.device import Device
from toolbox.plan import MergePlan
startup.begin()
startup.leave_out("bitsandbytes")
startup.leave_out("boto3")
from toolbox import merging
tool, base, adapter, out = sys.argv[1:]
if tool == "merge":
    merging._prove = lambda plan, folder, reporter: SimpleNamespace(as_dict=dict)
model = models.read(Path(base), id="base", source="local")
plan = MergePlan(
    entry="", model=model, adapter=Path(adapter), output=Path(out), dtype=model.dtype,
    device=Device(kind="cpu", name="CPU", memory_total_bytes=0, memory_free_bytes=0, bf16=True, cores=1),
    datasets=[datasets.resolve("demo-persona", find_home())],
)
merging.run(plan)
"""
PEFT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from peft import PeftModel
base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto", device_map="cpu")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
"""
COMPARE = """
import sys, torch
from pathlib import Path
from safetensors import safe_open
def tensors(folder):
    files = [safe_open(path, "pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}
ours, theirs = map(tensors, sys.argv[1:])
sys.exit(ours.keys() != theirs.keys() or not all(
    torch.equal(ours[name].get_tensor(name), theirs[name].get_tensor(name)) for name in ours
))
"""


class Taken(msgspec.Struct):
    """What one process took."""

    cpu_s: float
    memory_bytes: int
    wall_s: float


def command(tool: str, case: str, out: Path) -> list[str]:
    """The words that merge `case` into `out`; none where that peer is not installed."""
    base, adapter, bins = str(ASSETS / case), str(ASSETS / f"{case}-lora"), PEERS / "venvs"
    if tool == "cp":
        return ["cp", "-r", base, str(out)]
    if tool.startswith("merge"):
        return [sys.executable, "-c", OURS, tool, base, adapter, str(out)]
    words = {
        "peft": [bins / "trl/bin/python", "-c", PEFT, base, adapter, out],
        "swift": [
            bins / "swift/bin/swift", "export", "--model", base, "--model_type", "qwen2", "--template", "qwen2_5",
            "--use_hf", "true", "--adapters", adapter, "--merge_lora", "true", "--output_dir", out,
        ],
        "llamafactory": [bins / "lf/bin/llamafactory-cli", "export", out.with_suffix(".yaml")],
    }[tool]  # fmt: skip
    settings = {
        "model_name_or_path": base, "adapter_name_or_path": adapter, "template": "qwen", "finetuning_type": "lora",
        "export_dir": str(out), "export_size": 5, "export_device": "cpu", "export_legacy_format": False,
    }  # fmt: skip
    if tool == "llamafactory":
        out.with_suffix(".yaml").write_bytes(msgspec.json.encode(settings))
    return list(map(str, words)) if Path(words[0]).exists() else []


def measured(words: list[str], home: Path) -> Taken:
    """Run it to its end. Raises SystemExit with its last words where it fails."""
    environ = os.environ | {
        "PYTHONPATH": str(ROOT) if words[0] == sys.executable else "", "YCDY_HOME": str(home / "home"),
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(home / "hf"), "MODELSCOPE_CACHE": str(home / "ms"),
        "OMP_WAIT_POLICY": "PASSIVE", "PATH": f"{Path(words[0]).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    begun, log = time.monotonic(), home / "log.txt"
    with log.open("wb") as file:
        child = subprocess.Popen(words, env=environ, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=home)
        _pid, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{words[:3]} failed:\n{log.read_text('utf-8', 'replace')[-2000:]}")
    return Taken(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, time.monotonic() - begun)


def run_case(case: str, rounds: int, home: Path) -> bool:
    """Measure all tools in turn, print a table, and say whether what was promised for the big case holds."""
    taken: dict[str, list[Taken]] = {tool: [] for tool in TOOLS if command(tool, case, home / "x")}
    same = {}
    for _round in range(rounds):
        for tool, found in taken.items():
            out = home / f"{case}-{tool.replace(', ', '-')}"
            shutil.rmtree(out, ignore_errors=True)
            found.append(measured(command(tool, case, out), home))
            theirs = home / f"{case}-peft"
            if tool not in ("cp", "peft") and theirs.exists():
                same[tool] = not subprocess.call([sys.executable, "-c", COMPARE, out, theirs])
            if tool != "peft":
                shutil.rmtree(out)
    shutil.rmtree(home / f"{case}-peft", ignore_errors=True)
    middle = {tool: _median(found) for tool, found in taken.items()}
    print(f"{case}:{'':<12} CPU s   resident MiB   wall s   as peft's")
    for tool, one in middle.items():
        bits = {True: "bit for bit", False: "DIFFERS"}.get(same.get(tool), "")  # type: ignore[arg-type]
        print(f"  {tool:<15} {one.cpu_s:5.1f} {one.memory_bytes / 2**20:12.0f} {one.wall_s:10.1f}   {bits}", flush=True)
    return _promised(case, middle, same.get("merge", False))


def _median(found: list[Taken]) -> Taken:
    return Taken(*(statistics.median(getattr(one, name) for one in found) for name in Taken.__struct_fields__))


def _promised(case: str, middle: dict[str, Taken], same: bool) -> bool:
    peers = [one for tool, one in middle.items() if tool in ("peft", "swift", "llamafactory")]
    if not peers:
        print(f"  no peer is installed below {PEERS}")
        return False
    ours, proved = middle["merge"], middle["merge, proved"]
    cpu = min(peer.cpu_s for peer in peers)
    less, smaller = cpu / ours.cpu_s, min(peer.memory_bytes for peer in peers) / ours.memory_bytes
    proof = proved.cpu_s - ours.cpu_s
    print(f"  CPU: {less:.1f} times less than the best peer (big: at least {LEAST_CPU:g})")
    print(f"  resident memory: {smaller:.1f} times less (big: at least {LEAST_MEMORY:g})")
    print(f"  the proof: {proof:.1f} CPU s, {proof / cpu:.2f} of the best peer's merge (big: under {MOST_PROOF:g})")
    held = less >= LEAST_CPU and smaller >= LEAST_MEMORY and proof < MOST_PROOF * cpu
    return same and (held or case != "big")


def main(rounds: int) -> int:
    with tempfile.TemporaryDirectory(prefix="ycdy-bench-", dir=os.environ.get("SCRATCH")) as home:
        held = [run_case(case, rounds, Path(home)) for case in CASES]
    return int(not all(held))


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 3))
