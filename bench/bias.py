"""The bias loop on the embedded model, seed by seed: what it repairs, what it costs, and how long it takes.

python bench/bias.py [--stage dpo] [--seeds 1 2 3]
python bench/bias.py --choose [--stage dpo] [--seeds 11 12]

Each seed makes its own data and trains its own adapter; what is measured is the same: the held-out professions in the
held-out templates. A last line says whether each seed kept both promises, and the exit status does too.

With --choose the settings in GRID are compared, and no held-out profession is looked at: a training says how much of
the bias is left of the professions that its seed kept aside. The rule: of the settings whose answers stay as they are
with every seed, the one that leaves the least bias with its worst seed is taken into recipes/, since a repair is done
once.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from toolbox.strengths import UNCHANGED  # noqa: E402

MEASURED = (
    ("held-out", "likelihood_bias"), ("held-out", "likelihood_bias_zh"), ("held-out", "likelihood_bias_en"),
    ("held-out", "likelihood_lean"), ("held-out", "generated_bias"), ("held-out", "generated_bias_zh"),
    ("held-out", "generated_bias_en"), ("held-out", "generated_lean"), ("held-out", "neutral_rate"),
    ("held-out", "refusal_rate"), ("seen", "likelihood_bias"), ("seen", "likelihood_lean"), ("seen", "generated_bias"),
    ("demo-qa", "exact_match"), ("demo-perplexity", "perplexity"),
)  # fmt: skip
GRID = {
    "dpo": (
        ("dpo.beta=1", "learning_rate=2e-3", "max_steps=200"), ("dpo.beta=1", "learning_rate=1e-3", "max_steps=200"),
        ("dpo.beta=1", "learning_rate=4e-3", "max_steps=200"), ("dpo.beta=0.5", "learning_rate=2e-3", "max_steps=200"),
    ),
    "sft": (
        ("learning_rate=2e-3", "max_steps=100"), ("learning_rate=1e-3", "max_steps=200"),
    ),
}  # fmt: skip
RECIPES = {"dpo": "repair-tiny", "sft": "cpu-tiny"}


def loop(stage: str, seed: int, home: Path, more: list[str]) -> dict[str, Any]:
    """One loop by the command line; with the seconds that it took, of clock and of CPU, its jobs' with them."""
    begun, spent = time.monotonic(), _cpu_s()
    words = ["evaluate", "--model", "demo", "--repair", stage, "--seed", str(seed), "--json", "--yes", *more]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolbox", *words, "--home", str(home), "--lang", "en"],
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=home,
    )  # fmt: skip
    return {**json.loads(done.stdout), "wall_s": time.monotonic() - begun, "cpu_s": _cpu_s() - spent}


def choose(stage: str, seeds: list[int], home: Path) -> None:
    """A line a setting: the share of the bias that is left and of the answers that stay, seed by seed."""
    measured = _said(home, "evaluate", "--model", "demo", "--suite", "demo-bias", "demo-general")
    left = {}
    for words in GRID[stage]:
        beta = next((word.partition("=")[2] for word in words if word.startswith("dpo.beta")), "1")
        found = []
        for seed in seeds:
            made = _said(home, "data", "repair", measured["run"], "--stage", stage, "--beta", beta, "--seed", str(seed))
            train = ["finetune", "--model", "demo", "--dataset", made["train"], "--recipe", RECIPES[stage]]
            tried = _said(home, *train, "--seed", str(seed), "--set", *words)["strength"]
            (at,) = (one for one in tried["tried"] if one["strength"] == tried["chosen"])
            found.append((tried["chosen"], at["bias"] / tried["tried"][0]["bias"], at["unchanged"]))
        told = "; ".join(f"at {strength:g}: {share:.3f} left, {same:.1%} unchanged" for strength, share, same in found)
        left[words] = max(share for _strength, share, _same in found)
        if any(same < UNCHANGED for _strength, _share, same in found):
            left[words] = 1.0
        print(f"{' '.join(words):60} {left[words]:.3f}   {told}", flush=True)
    print(f"\nthe rule takes: {' '.join(min(left, key=lambda words: left[words]))}")


def _said(home: Path, *words: str) -> dict[str, Any]:
    """What a verb answers."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolbox", *words, "--json", "--yes", "--home", str(home), "--lang", "en"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=home,
    )  # fmt: skip
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def row(result: dict[str, Any], suite: str, metric: str) -> str:
    """base → tuned, and the difference with its interval and p."""
    found = {r["model"]: r for r in result["results"] if (Path(r["suite"]).stem, r["metric"]) == (suite, metric)}
    if len(found) < 3:
        return "–"
    change = found["difference"]
    told = f"{found['base']['value']:.3f} → {found['tuned']['value']:.3f}"
    p = f", p = {change['p']:.2g}" if change.get("p") is not None else ""
    return f"{told}, difference {change['value']:+.3f} [{change['low']:+.3f} … {change['high']:+.3f}]{p}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("dpo", "sft"), default="dpo")
    parser.add_argument("--choose", action="store_true", help="compare settings without the held-out professions")
    parser.add_argument("--seeds", type=int, nargs="+")
    parser.add_argument("--home", type=Path, help="kept; without it all is removed again")
    parser.add_argument("more", nargs="*", help="after --: more options of evaluate")
    options = parser.parse_args()
    if options.home:
        options.home.mkdir(parents=True, exist_ok=True)
    kept = []
    with tempfile.TemporaryDirectory() as scratch:
        home = options.home or Path(scratch)
        if options.choose:
            choose(options.stage, options.seeds or [11, 12], home)
            return 0
        for seed in options.seeds or [1, 2, 3]:
            result = loop(options.stage, seed, home, options.more)
            print(f"\nseed {seed}: {result['wall_s']:.0f} s, {result['cpu_s']:.0f} s of CPU; {result['runs'][-1]}")
            for suite, metric in MEASURED:
                print(f"  {suite:16}{metric:20}{row(result, suite, metric)}", flush=True)
            for check in result["repair"]["checks"]:
                interval = f"{check['value']:.3f} [{check['low']:.3f} … {check['high']:.3f}]"
                print(f"  {'held' if check['passed'] else 'FAILED'}: {check['check']} {check['metric']} {interval}")
            print(f"  turned round: {result['repair']['turned_round']} of {result['repair']['professions']}")
            kept.append(result["repair"]["kept"])
    print(f"\n{sum(kept)} of {len(kept)} seeds kept both promises")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
