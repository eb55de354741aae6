"""What a measured training leaves to compare with; scripts/matrix.py and scripts/architectures.py give it to jobs."""

from typing import Any

from toolbox.runs import Silent


class Watching(Silent):
    """A reporter that keeps what the model was before the first step, and the losses."""

    def __init__(self, models: list[Any]) -> None:
        self._models = models
        self.before: dict[str, Any] = {}
        self.trained: set[str] = set()
        self.losses: list[float] = []

    def resumed(self, step: int) -> None:
        model = self._models[0]
        self.before = {name: tensor.detach().clone() for name, tensor in tensors(model)}
        self.trained = {name for name, weight in model.named_parameters() if weight.requires_grad}

    def progress(self, step: int, steps: int, **metrics: float) -> None:
        self.losses += [metrics[name] for name in ("loss", "eval_loss") if name in metrics]


def tensors(model: Any) -> list[tuple[str, Any]]:
    """All of a model's weights and buffers, by name."""
    return [*model.named_parameters(), *model.named_buffers()]
