"""TensorBoard files of a run: `tensorboard --logdir RUN/tensorboard`."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType


class Board:
    """Writes metrics by step; what an earlier start of the run wrote past `step` is marked as void."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"train/{name}", value, step)

    def __enter__(self) -> "Board":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
