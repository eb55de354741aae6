"""`plan --gpus N`: what each of several GPUs would hold under DDP, ZeRO and FSDP."""

from typing import TYPE_CHECKING, Any

import msgspec

from toolbox.commands import Session
from toolbox.errors import InputError
from toolbox.i18n import _

if TYPE_CHECKING:
    from toolbox.device import Device
    from toolbox.plan import FinetunePlan

NAMES = {"ddp": "DDP", "zero2": "ZeRO-2", "zero3": "ZeRO-3", "zero3-offload": "ZeRO-3 offload", "fsdp": "FSDP"}


class OnGpus(msgspec.Struct, kw_only=True, frozen=True):
    """A strategy over several GPUs. `parts_bytes`, on each of them, adds up to `peak_bytes`."""

    strategy: str
    gpus: int
    peak_bytes: int
    parts_bytes: dict[str, int]
    fits: bool
    """With the plan's margin."""


def refuse_others(gpus: int, device: "Device") -> None:
    """Raise InputError where several of a device are asked for that is no CUDA GPU."""
    if gpus > 1 and device.kind != "cuda":
        raise InputError(
            _("--gpus is for CUDA GPUs, and {device} is none.").format(device=device.name),
            _("Name one: {option}").format(option='--assume-device "NVIDIA A10:24GiB"'),
        )


def on_gpus(plan: "FinetunePlan", gpus: int) -> list[OnGpus]:
    """The plan on `gpus` of its device, by each strategy, with the same micro-batch on each."""
    from toolbox import memory, planning
    from toolbox.memory.states import STRATEGIES

    estimate, load = plan.estimate, planning.load_of(plan)
    found = []
    for strategy in STRATEGIES:
        parts = memory.parts_bytes(plan.model, plan, plan.device, load, strategy=strategy, gpus=gpus)
        change = round(sum(parts.values()) * (estimate.factors.memory - 1))
        parts |= {"calibration": change} if change else {}
        peak = sum(parts.values())
        fits = peak <= int(estimate.device_bytes * (1 - estimate.margin))
        found.append(OnGpus(strategy=strategy, gpus=gpus, peak_bytes=peak, parts_bytes=parts, fits=fits))
    return found


def show(plan: "FinetunePlan", gpus: int, session: Session) -> list[dict[str, Any]]:
    """The strategies as a table; returns them for `--json`."""
    from toolbox import units

    found = on_gpus(plan, gpus)
    rows = []
    for item in found:
        parts = item.parts_bytes
        held = (parts["weights"] + parts["adapter"], parts["gradients"], parts["optimizer"], parts.get("exchange", 0))
        fits = _("fits") if item.fits else _("does not fit")
        rows.append((NAMES[item.strategy], *map(units.size, held), units.size(item.peak_bytes), fits))
    header = (
        _("Strategy"), _("Weights"), _("Gradients"), _("Optimizer"), _("Buffers"), _("Peak"), "",
    )  # fmt: skip
    session.table(_("On each of {gpus} × {device}").format(gpus=gpus, device=plan.device.name), header, rows)
    said = _(
        "Each takes {batch} rows at once, as planned; `finetune` here trains on one GPU only: distributed training is "
        "not there yet."
    ).format(batch=plan.training.per_device_train_batch_size)
    session.say(said + "\n")
    return [msgspec.to_builtins(item) for item in found]
