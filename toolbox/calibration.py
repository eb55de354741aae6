"""What runs here took against what was predicted, HOME/calibration.jsonl, and what the next plan makes of it.

`plan --history` shows it. A line a run, kept when the run is deleted; a line that a crash tore is passed over.
"""

import fcntl
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from toolbox import costs, files, methods
from toolbox.device import Device
from toolbox.runs import Run

if TYPE_CHECKING:
    from toolbox.memory import Estimate, Load, Recipe
    from toolbox.models import ModelFacts
    from toolbox.plan import FinetunePlan

NAME = "calibration.jsonl"
NEWEST = 10
"""Runs of a kind that count, the newest: drivers and libraries change."""
DOUBT = {"memory": 1.0, "speed": 0.25, "tokens": 0.25, "rest": 0.25}
"""A prior worth so many runs says that the prediction is right: n runs move it by n / (n + doubt) of what they found.
Memory is predicted about as well as runs repeat; time, by a data sheet, is known to a factor of two."""
ALIKE = 4.0
"""Runs of models up to so many times smaller or larger count before those of any size: the share of the data sheet
that is reached depends on it."""
BOUNDS = {"memory": 2.0, "speed": 50.0, "tokens": 10.0, "rest": 50.0}
"""No factor is more than this, or less than one over it: what is further off is another error than the model's."""
LEFT = ("adapter", "model", "checkpoints")
"""What a finished run leaves, below its folder."""
CROWDED = 1.5
"""A process that held more than the overhead so many times before the training is not measured by its peak."""
SPREAD_RUNS = 2
"""From so many runs on their spread is the range of a prediction."""


class Figures(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a run takes, predicted or measured. 0: not known."""

    peak_bytes: int = 0
    steps_s: float = 0.0
    """Of the training steps."""
    rest_s: float = 0.0
    """Of all else: starting, loading, evaluating, saving."""
    tokens: int = 0
    """That were learnt from."""
    energy_wh: float = 0.0
    disk_bytes: int = 0
    """That a finished run leaves."""

    @property
    def time_s(self) -> float:
        return self.steps_s + self.rest_s if self.steps_s and self.rest_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.steps_s if self.steps_s else 0.0


class Factors(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """What a prediction is multiplied by, and how far the runs that say so lie apart."""

    runs: int = 0
    """How many said so; 0: nothing is changed."""
    memory: float = 1.0
    speed: float = 1.0
    """Of the seconds a token."""
    tokens: float = 1.0
    rest: float = 1.0
    memory_spread: float = 0.0
    """The most that a measured peak lay above its prediction with these factors, as a share of that."""
    time_low: float = 0.0
    time_high: float = 0.0
    """Least and most of measured over predicted time, with these factors; 0: too few runs."""
    watts: float = 0.0
    """The median draw; 0: not measured."""

    @property
    def margin(self) -> float:
        """Share of a device's memory to leave free, so that a run as far off as the furthest would have fitted."""
        return 1 - 1 / (1 + self.memory_spread)


class Line(msgspec.Struct, kw_only=True, frozen=True, omit_defaults=True):
    """A run in calibration.jsonl."""

    run: str
    when: float
    """Seconds since the epoch."""
    device: str
    implementation: str
    """What carries the step out: the kind of the device, and the dtype."""
    kind: str
    """What is tuned: adapter, quantized (an adapter over 4 bits) or weights; with `+rollout` where answers are
    written."""
    model: str
    parameters: int
    stage: str
    method: str
    batch: str
    """As 4 × 2, rows at once and accumulated."""
    max_length: int
    gradient_checkpointing: bool = False
    predicted: Figures
    """By the formulas alone."""
    said: Figures
    """What the plan told: with the factors of that day."""
    measured: Figures
    seen_bytes: int = 0
    """The peak by the formulas alone for the largest micro-batch that came, not for the largest that might: what the
    measured one is compared with."""
    out_of_memory: bool = False
    """The measured peak is what was there, so less than what was needed."""


def line(
    plan: "FinetunePlan", run: str, measured: Figures, *, seen_bytes: int = 0, out_of_memory: bool = False
) -> Line:
    """What `note` takes: the run named `run`, done by `plan`, took `measured`.

    `seen_bytes`: as in `Line`; without it, what was predicted. `out_of_memory`: it ended for want of memory, and
    `measured.peak_bytes` is a lower bound of what it needed.
    """
    training, said = plan.training, told(plan.estimate)
    predicted = _unchanged(said, plan.estimate.factors)
    return Line(
        run=run, when=round(time.time(), 1), device=device_key(plan.device),
        implementation=_implementation(plan.device, plan), kind=_kind(plan, plan.stage),
        model=plan.model.id, parameters=plan.model.parameters, stage=plan.stage, method=plan.method,
        batch=f"{training.per_device_train_batch_size} × {training.gradient_accumulation_steps}",
        max_length=training.max_length, gradient_checkpointing=training.gradient_checkpointing,
        predicted=predicted, said=said, measured=measured, seen_bytes=seen_bytes or predicted.peak_bytes,
        out_of_memory=out_of_memory,
    )  # fmt: skip


def compared(
    plan: "FinetunePlan", load: "Load", run: Run, result: Mapping[str, Any], elapsed_s: float
) -> dict[str, Any]:
    """What result.json says of prediction and measurement, after it was noted in the run's home.

    `load`: what the plan's data were taken to do; `result`: what the training returned; `elapsed_s`: of the job so
    far, in this start.
    """
    found: Mapping[str, Any] = result.get("measured", {})
    steps_s = float(found.get("steps_s", 0))
    written = sum(files.size_of(path) for name in LEFT if (path := run.path / name).exists())
    measured = Figures(
        peak_bytes=_comparable(plan, found),
        steps_s=steps_s,
        rest_s=max(0.0, elapsed_s - steps_s) if found.get("fresh") else 0.0,
        tokens=result.get("tokens", 0),
        energy_wh=found.get("energy_wh", 0.0) if found.get("fresh") else 0.0,
        disk_bytes=written,
    )
    noted = line(plan, run.id, measured, seen_bytes=_of_rows_seen(plan, load, found))
    note(run.path.parents[1], noted)
    return {
        "predicted": {
            **shown(noted.said),
            "before_calibration": shown(noted.predicted),
            "rows_seen_bytes": noted.seen_bytes,
        },
        "measured": {**found, **shown(measured)},
    }


def lacked(plan: "FinetunePlan", run: Run, found: Mapping[str, Any]) -> None:
    """Note that memory ran out under `plan`; `found`: what was measured until then, a lower bound of what it needed."""
    peak = Figures(peak_bytes=_comparable(plan, found))
    note(run.path.parents[1], line(plan, run.id, peak, out_of_memory=True))


def shown(figures: Figures) -> dict[str, float]:
    """The known ones of the figures, with what follows from them, for `--json`."""
    values = {
        **msgspec.structs.asdict(figures), "time_s": figures.time_s, "tokens_per_s": figures.tokens_per_s,
    }  # fmt: skip
    return {name: round(value, 3) for name, value in values.items() if value}


def _of_rows_seen(plan: "FinetunePlan", load: "Load", found: Mapping[str, Any]) -> int:
    """The predicted peak for the largest micro-batch that came; 0 where it is not known."""
    from toolbox import memory  # which takes its factors from here

    tokens, labels = found.get("largest_tokens", 0), found.get("largest_labels", 0)
    if not tokens:
        return 0
    sequences = plan.training.per_device_train_batch_size * load.sequences
    seen = msgspec.structs.replace(load, longest_tokens=math.ceil(tokens / sequences), label_share=labels / tokens)
    return sum(memory.parts_bytes(plan.model, plan, plan.device, seen).values())


def _comparable(plan: "FinetunePlan", found: Mapping[str, Any]) -> int:
    """The measured peak of what was predicted: of the whole process; 0 where that is not known.

    cuda: where the driver hides processes, as in containers, what the allocator reserved and the predicted overhead.
    cpu: not where the process held more than the overhead before the model was loaded, as in a notebook.
    """
    overhead = plan.estimate.parts_bytes.get("overhead", 0)
    if plan.device.kind == "cuda":
        reserved = found.get("reserved_bytes", 0)
        return int(found.get("process_bytes", 0) or (reserved + overhead if reserved else 0))
    if found.get("begun_bytes", 0) > CROWDED * overhead:
        return 0
    return int(found.get("peak_bytes", 0))


def note(home: Path, found: Line) -> None:
    """Append a line to HOME/calibration.jsonl, whole: also after a torn one, and beside other jobs."""
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(home / NAME, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        file.write((b"\n" if torn else b"") + msgspec.json.encode(found) + b"\n")
        os.fsync(file.fileno())


def read(home: Path) -> list[Line]:
    """Every line that can be read, the oldest first; none where there is no file."""
    try:
        raw = (home / NAME).read_bytes()
    except OSError:
        return []
    return [found for text in raw.splitlines() if (found := _decoded(text))]


def _decoded(text: bytes) -> Line | None:
    try:
        return msgspec.json.decode(text, type=Line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def device_key(device: Device) -> str:
    """What a machine's runs are found by: a processor with other cores to use is another device."""
    return f"{device.name} × {device.cores}" if device.kind == "cpu" else device.name


def factors(home: Path, model: "ModelFacts", recipe: "Recipe", device: Device, stage: str) -> Factors:
    """What the runs noted so far say of `model` tuned by `recipe` on `device`; another device's never count."""
    return of_lines(read(home), model, recipe, device, stage)


def of_lines(lines: Sequence[Line], model: "ModelFacts", recipe: "Recipe", device: Device, stage: str) -> Factors:
    """As `factors`, of lines that were read before."""
    key = (device_key(device), _implementation(device, recipe), _kind(recipe, stage))
    found = [line for line in lines if (line.device, line.implementation, line.kind) == key]
    near = [line for line in found if 1 / ALIKE <= line.parameters / max(1, model.parameters) <= ALIKE]
    found = (near or found)[-NEWEST:]
    if not found:
        return Factors()
    done = [line for line in found if not line.out_of_memory]
    peaks = [line.measured.peak_bytes / line.seen_bytes for line in done if _has_peak(line)]
    memory = _factor("memory", [*peaks, *_bounds_above(found)])
    speed = _factor("speed", [1 / ratio for ratio in _ratios(done, "tokens_per_s")])
    tokens = _factor("tokens", _ratios([line for line in done if line.model == model.id], "tokens"))
    rest = _factor("rest", _ratios(done, "rest_s"))
    changed = Factors(
        runs=len(found), memory=memory, speed=speed, tokens=tokens, rest=rest,
        watts=_median([3600 * line.measured.energy_wh / line.measured.time_s for line in done
                       if line.measured.energy_wh and line.measured.time_s]),
    )  # fmt: skip
    peaks = [line.measured.peak_bytes / line.seen_bytes for line in found if _has_peak(line)]
    furthest = min(max(peaks, default=1.0), BOUNDS["memory"]) / memory
    times = [line.measured.time_s / now for line in done if line.measured.time_s and (now := _again(line, changed))]
    return msgspec.structs.replace(
        changed,
        memory_spread=max(0.0, furthest - 1),
        time_low=min(times) if len(times) >= SPREAD_RUNS else 0.0,
        time_high=max(times) if len(times) >= SPREAD_RUNS else 0.0,
    )


def corrected(estimate: "Estimate", by: Factors) -> "Estimate":
    """`estimate`, made by the formulas alone, as this machine's runs say; its parts still add up to its peak."""
    if not by.runs:
        return estimate
    raw = told(estimate)
    change = round(raw.peak_bytes * (by.memory - 1))
    peak = raw.peak_bytes + change
    steps_s, rest_s = raw.steps_s * by.speed * by.tokens, raw.rest_s * by.rest
    time_s = steps_s + rest_s if estimate.time_s else 0.0
    low, high = estimate.time_low_s / (estimate.time_s or 1), estimate.time_high_s / (estimate.time_s or 1)
    low, high = (min(1.0, by.time_low), max(1.0, by.time_high)) if by.time_high else (low, high)
    return msgspec.structs.replace(
        estimate,
        peak_bytes=peak,
        parts_bytes={**estimate.parts_bytes, "calibration": change} if change else estimate.parts_bytes,
        fits=peak <= estimate.device_bytes,
        time_s=time_s,
        time_low_s=low * time_s,
        time_high_s=high * time_s,
        rest_s=rest_s,
        tokens=round(raw.tokens * by.tokens),
        tokens_per_s=estimate.tokens_per_s / by.speed,
        energy_wh=by.watts * time_s / 3600 if by.watts else estimate.energy_wh * (time_s / (estimate.time_s or 1)),
        factors=by,
    )


def told(estimate: "Estimate") -> Figures:
    """An estimate's figures."""
    return Figures(
        peak_bytes=estimate.peak_bytes,
        steps_s=max(0.0, estimate.time_s - estimate.rest_s),
        rest_s=estimate.rest_s,
        tokens=estimate.tokens,
        energy_wh=estimate.energy_wh,
        disk_bytes=costs.left_bytes(estimate.disk_parts_bytes),
    )


def _unchanged(said: Figures, by: Factors) -> Figures:
    """What the formulas said before the factors."""
    return msgspec.structs.replace(
        said,
        peak_bytes=round(said.peak_bytes / by.memory),
        steps_s=said.steps_s / by.speed / by.tokens,
        rest_s=said.rest_s / by.rest,
        tokens=round(said.tokens / by.tokens),
    )


def _again(line: Line, by: Factors) -> float:
    """The time that would be predicted for a run with these factors."""
    return line.predicted.steps_s * by.speed * by.tokens + line.predicted.rest_s * by.rest


def _implementation(device: Device, recipe: "Recipe | FinetunePlan") -> str:
    return f"{device.kind} {recipe.dtype}"


def _kind(recipe: "Recipe | FinetunePlan", stage: str) -> str:
    tuned = "weights" if methods.trained_weights(recipe.method) else "adapter"
    tuned = "quantized" if recipe.quantization != "none" else tuned
    return f"{tuned}+rollout" if stage in ("ppo", "grpo") else tuned


def _has_peak(line: Line) -> bool:
    return bool(line.measured.peak_bytes and line.seen_bytes)


Figure = Literal["tokens_per_s", "tokens", "rest_s"]


def _ratios(lines: Sequence[Line], name: Figure) -> list[float]:
    """Measured over predicted, where both are known."""
    pairs = [(getattr(line.measured, name), getattr(line.predicted, name)) for line in lines]
    return [measured / predicted for measured, predicted in pairs if measured and predicted]


def _bounds_above(lines: Sequence[Line]) -> list[float]:
    """Of runs that ended for want of memory: what they needed at least over what was predicted, where it is more."""
    found = [line for line in lines if line.out_of_memory and _has_peak(line)]
    return [ratio for line in found if (ratio := line.measured.peak_bytes / line.seen_bytes) > 1]


def _factor(name: str, ratios: Sequence[float]) -> float:
    """The median of the ratios, drawn to 1 where there are few, within bounds."""
    if not ratios:
        return 1.0
    bound = math.log(BOUNDS[name])
    middle = statistics.median(math.log(ratio) for ratio in ratios) * len(ratios) / (len(ratios) + DOUBT[name])
    return math.exp(min(bound, max(-bound, middle)))


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0
