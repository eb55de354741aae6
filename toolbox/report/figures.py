"""What `runs show` says of a plan and a result: each figure by its name, in its unit."""

from collections.abc import Mapping
from typing import Any

from toolbox import units
from toolbox.i18n import N_, _

PLANNED = {
    "recipe": N_("Recipe"),
    "why": N_("Why"),
    "method": N_("Method"),
    "quantization": N_("Quantization"),
    "dtype": N_("Precision"),
    "adapter": N_("Adapter"),
    "output": N_("Output"),
    "engine": N_("Engine"),
}
CAME = {
    "adapter": N_("Adapter"),
    "output": N_("Output"),
    "train_loss": N_("Training loss"),
    "eval_loss_before": N_("Evaluation loss before"),
    "eval_loss": N_("Evaluation loss"),
    "predicted_peak_bytes": N_("Predicted peak"),
    "peak_bytes": N_("Measured peak"),
    "rows": N_("Rows"),
    "rows_held_out": N_("Rows held out"),
    "rows_cut": N_("Rows cut"),
    "rows_dropped": N_("Rows dropped"),
    "tokens": N_("Tokens"),
    "tokens_per_s": N_("Tokens per second"),
    "elapsed_s": N_("Time taken"),
    "max_abs_diff": N_("Largest difference of a logit"),
    "tolerance": N_("Allowed difference"),
    "url": N_("Address"),
    "requests": N_("Requests"),
    "restarts": N_("Restarts of the engine"),
    "prompt_tokens": N_("Tokens read"),
    "completion_tokens": N_("Tokens written"),
}
"""Keys of a plan, and of a result, with their names, in the order they are shown."""


def figures(plan: Mapping[str, Any], result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) of what is worth a line; what came of it replaces what was planned."""
    said = {_(name): shown(key, plan.get(key)) for key, name in PLANNED.items()}
    said |= {_(name): shown(key, result[key]) for key, name in CAME.items() if key in result}
    return [(name, text) for name, text in said.items() if text and text != "none"]


def shown(key: str, value: Any) -> str:
    """A value in the unit that its key says; empty for what is no text or number."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if key.endswith("_bytes"):
        return units.size(value)
    if key == "elapsed_s":
        return units.duration(value)
    return f"{value:.5g}" if isinstance(value, float) else f"{value:,}"
