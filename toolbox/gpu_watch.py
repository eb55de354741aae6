"""Watches the GPU of a job: one that is lost ends the job with a sentence, where CUDA might hang for ever."""

import os
import threading
from collections.abc import Callable, Mapping

from toolbox import nvidia

LOOK_EVERY_S = 2.0
GRACE_S = 10.0
"""How long the work itself may take to say what happened, before it is ended."""

Look = Callable[[], str]
"""Why the GPU is lost; empty while it is well."""


def start(index: int, lost: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
    """Watch torch's GPU `index` in a thread, which calls `lost` with the reason, once."""
    threading.Thread(target=lambda: watch(nvml(index, environ), lost), name="gpu watch", daemon=True).start()


def watch(look: Look, lost: Callable[[str], None], every_s: float = LOOK_EVERY_S, grace_s: float = GRACE_S) -> None:
    """Look until the GPU is lost twice in a row, so that no hiccup ends hours of work; then, after `grace_s`, tell."""
    pause, before = threading.Event(), ""
    while not ((reason := look()) and before):
        before = reason
        pause.wait(every_s)
    pause.wait(grace_s)
    lost(reason)


def nvml(index: int, environ: Mapping[str, str]) -> Look:
    """NVML's word on torch's GPU `index`. Whatever else it complains of than a lost GPU is the work's own business."""
    import pynvml

    gone = (pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_RESET_REQUIRED)

    def look() -> str:
        try:
            pynvml.nvmlInit()
            number = list(nvidia.visible(pynvml, environ.get("CUDA_VISIBLE_DEVICES")))[index]
            pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(number))
        except pynvml.NVMLError as error:
            return nvidia.explain(pynvml, error) if error.value in gone else ""
        except IndexError:
            return ""
        return ""

    return look
