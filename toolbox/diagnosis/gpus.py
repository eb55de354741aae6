"""Rules: a GPU that was lost, a driver that does not go with this CUDA, code that is not built for the GPU."""

from toolbox.diagnosis.causes import Cause
from toolbox.diagnosis.traces import Traces
from toolbox.i18n import _, sentences

LOST = (
    r"fallen off the bus|GPU is lost|GPU requires reset|uncorrectable ECC error|Uncorrectable double bit error"
    r"|CUDA error: (?:hardware stack error|unspecified driver error|GPU.*lost)|NVMLError_GpuIsLost"
    r"|Unable to determine the device handle for (?:GPU|gpu)|cudaErrorECCUncorrectable"
)
"""The driver's (NVIDIA, Xid errors; nvml.h: nvmlErrorString), CUDA's (driver_types.h: cudaError)."""
XID = r"NVRM: Xid \(\S+\): (?:48|62|64|74|79|92|94|95|119|120|140|154)\b"
"""Those for which NVIDIA's table of Xid errors names the hardware, the bus or the GPU's own processor as the cause;
13, 31, 43 and 45, which a program's mistake brings about, are left out."""
DRIVER = (
    r"NVIDIA driver on your system is too old|CUDA driver version is insufficient for CUDA runtime version"
    r"|Found no NVIDIA driver on your system|unsupported display driver / cuda driver combination"
    r"|forward compatibility was attempted on non supported HW|Driver/library version mismatch"
    r"|PTX was compiled with an unsupported toolchain|cuda>=\d+\.\d+, please update your driver"
    r"|driver version is too old for|CUDA initialization: Unexpected error from cudaGetDeviceCount"
)
"""torch (torch/cuda/__init__.py, torch/csrc/cuda), CUDA (driver_types.h: 35, 222, 803, 804), NVML's error 18,
nvidia-container-cli."""
KERNELS = (
    r"no kernel image is available for execution|Torch not compiled with CUDA enabled"
    r"|CUDA capability sm_\d+ is not compatible|compiled without GPU support|CUDA Setup failed despite"
)
"""CUDA (driver_types.h: 209), torch (torch/cuda/__init__.py), bitsandbytes (cextension.py)."""


def lost(traces: Traces) -> Cause | None:
    evidence = [*traces.ended_with("gpu_lost"), *traces.said(LOST), *traces.of_kernel(XID)]
    evidence += traces.said(XID)
    if not evidence:
        return None
    resumable = traces.status.resumable
    return Cause(
        kind="gpu_lost",
        message=_("The GPU was lost: it no longer answers the driver, or its memory is broken."),
        evidence=list(dict.fromkeys(evidence)),
        remedy=sentences(
            _(
                "Restart the machine; nothing else brings that GPU back. If it happens again, have its power supply, "
                "cooling and slot looked at, or rent another one."
            ),
            _("Then go on from the last checkpoint.") if resumable else "",
        ),
        command=traces.on_run("runs", "resume") if resumable else traces.command("doctor"),
    )


def old_driver(traces: Traces) -> Cause | None:
    evidence = traces.said(DRIVER)
    if not evidence:
        return None
    driver = traces.facts.env.get("driver")
    return Cause(
        kind="driver",
        message=_("The NVIDIA driver and the CUDA of this environment do not go together."),
        evidence=[*evidence, *([f"env.json: driver {driver}"] if driver else [])],
        remedy=_(
            "Update the driver on the machine itself, not in the container, and restart it; doctor names the version "
            "that is needed."
        ),
        command=traces.command("doctor"),
    )


def without_kernels(traces: Traces) -> Cause | None:
    evidence = traces.said(KERNELS)
    if not evidence:
        return None
    return Cause(
        kind="cuda_build",
        message=_("The libraries installed here are not built for this GPU."),
        evidence=evidence,
        remedy=_("Prepare the environment for CUDA; a GPU older than compute capability 7.5 can't be used."),
        command="YCDY_LOCK=cuda bash yichuidingyin.sh --prepare",
    )
