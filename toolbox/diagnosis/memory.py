"""Rules: memory of the GPU, memory of the machine, and the kernel that kills for it."""

import re

from toolbox import rungs, units
from toolbox.diagnosis.causes import Cause
from toolbox.diagnosis.traces import Line, Traces
from toolbox.i18n import _, sentences

ON_GPU = (
    r"CUDA out of memory|OutOfMemoryError: (?:CUDA|HIP)|CUDA error: out of memory|MPS backend out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"
)
"""torch's allocators (c10/cuda/CUDACachingAllocator.cpp, aten/src/ATen/mps/MPSAllocator.mm), CUDA's own names."""
IN_RAM = (
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|^MemoryError\b|numpy\S*MemoryError"
    r"|Cannot allocate memory|\bstd::bad_alloc\b|mmap failed.*Cannot allocate"
)
"""torch's on a CPU (c10/core/impl/alloc_cpu.cpp), Python's, numpy's, the system's ENOMEM, C++'s."""
KILLED = r"(?:Out of memory|Memory cgroup out of memory): Killed process {pid}\b"
"""The kernel's words (mm/oom_kill.c)."""
SHORTEST = 64
"""Rows cut shorter than this teach nothing."""
NEARLY = 0.9
"""From this share of the machine's memory on, a job that died without a word is likely to have been killed for it."""


def on_the_gpu(traces: Traces) -> Cause | None:
    evidence = _said(traces, ON_GPU)
    device = traces.facts.plan.get("device") or {}
    if not evidence and device.get("kind") in ("cuda", "mps"):
        evidence = traces.ended_with("out_of_memory")
    if not evidence:
        return None
    return Cause(
        kind="out_of_memory",
        message=_("The GPU's memory did not suffice."),
        evidence=[*evidence, *_peak(traces), *_rungs(traces)],
        remedy=_less(traces),
        command=_smaller(traces),
    )


def in_main_memory(traces: Traces) -> Cause | None:
    evidence = _said(traces, IN_RAM)
    device = traces.facts.plan.get("device") or {}
    if not evidence and device.get("kind") not in ("cuda", "mps"):
        evidence = traces.ended_with("out_of_memory")
    if not evidence or _said(traces, ON_GPU):
        return None
    return Cause(
        kind="out_of_host_memory",
        message=_("The machine's memory did not suffice."),
        evidence=[*evidence, *_peak(traces), *_rungs(traces)],
        remedy=sentences(_("End other programs."), _less(traces)),
        command=_smaller(traces),
    )


def killed_for_it(traces: Traces) -> Cause | None:
    """A job that died without a word, because the kernel had to free memory."""
    if traces.status.state != "lost" or traces.forced:
        return None
    certain = traces.of_kernel(KILLED.format(pid=traces.status.pid)) if traces.status.pid else []
    counted = []
    if traces.oom_kills:
        told = _("memory.events: since the start the kernel has killed {count} processes here for memory.")
        counted = [told.format(count=traces.oom_kills)]
    near = _near_the_limit(traces)
    if not (certain or counted or near):
        return None
    return Cause(
        kind="killed_for_memory",
        message=_("The system ended the job because the machine's memory was full."),
        evidence=[*certain, *counted, *near],
        remedy=_("End other programs, give the container more memory, or take fewer rows at once."),
        command=_halved(traces),
        certainty="certain" if certain else "likely" if counted else "possible",
    )


def _near_the_limit(traces: Traces) -> list[str]:
    """The memory that was measured last, where it was almost all; on a GPU it is not the machine's."""
    device, taken = traces.facts.plan.get("device") or {}, traces.facts.curve("memory_bytes")
    total = device.get("memory_total_bytes") or 0
    if device.get("kind") != "cpu" or not taken or not total or taken[-1][1] < NEARLY * total:
        return []
    told = _("metrics.jsonl: step {step}: {taken} of {total} taken")
    return [told.format(step=taken[-1][0], taken=units.size(taken[-1][1]), total=units.size(total))]


def _peak(traces: Traces) -> list[str]:
    """What was predicted, against what the device has."""
    estimate = traces.facts.plan.get("estimate") or {}
    if not estimate.get("peak_bytes") or not estimate.get("device_bytes"):
        return []
    told = _("plan.yaml: predicted peak {peak} of {device}")
    return [told.format(peak=units.size(estimate["peak_bytes"]), device=units.size(estimate["device_bytes"]))]


def _said(traces: Traces, pattern: str) -> list[str]:
    """The log's lines; where the training ended for memory, what made it take less before too."""
    found = traces.said(pattern)
    if found or not traces.ended_with("out_of_memory"):
        return found
    reasons = dict.fromkeys(rung.reason for rung in rungs.read(traces.facts.run) if re.search(pattern, rung.reason))
    return [str(Line(rungs.FILE, reason)) for reason in list(reasons)[:1]]


def _rungs(traces: Traces) -> list[str]:
    """What the training gave up before, to go on all the same."""
    return [f"{rungs.FILE}: {rungs.named(rung)}" for rung in rungs.read(traces.facts.run)]


def _less(traces: Traces) -> str:
    """What takes less memory than all that the training has tried by itself."""
    if traces.verb == "finetune":
        return _("Allow the base in 4 bits and shorter rows where memory runs out, or take a smaller model.")
    return _("Take a smaller model, or end what else uses that memory.")


def _smaller(traces: Traces) -> str:
    """The command for that; where both are allowed already, with rows half as long."""
    plan = traces.facts.plan
    if traces.verb != "finetune":
        return traces.once_more()
    allowed = {"--allow-4bit": plan.get("allow_4bit"), "--allow-shorter": plan.get("allow_shorter")}
    if all(allowed.values()):
        length = int(traces.training.get("max_length", 512)) // 2
        return " ".join([traces.once_more(max_length=max(SHORTEST, length)), *allowed])
    return " ".join([traces.once_more(), *allowed])


def _halved(traces: Traces) -> str:
    """The command with half as many rows at once: a job that is killed could not try that itself."""
    batch = traces.training.get("per_device_train_batch_size")
    if traces.verb != "finetune" or not batch or batch == 1:
        return _smaller(traces)
    effective = batch * int(traces.training.get("gradient_accumulation_steps", 1))
    half = max(size for size in range(1, batch // 2 + 1) if effective % size == 0)
    return traces.once_more(f"per_device_train_batch_size={half}", f"gradient_accumulation_steps={effective // half}")
