"""The memory model: a training step's peak by parts, from a config alone, in milliseconds and without torch."""

import msgspec


class Estimate(msgspec.Struct, kw_only=True, frozen=True):
    """What a plan predicts. `parts_bytes` adds up to `peak_bytes`: weights, adapter, gradients, optimizer, activations, logits, overhead."""

    peak_bytes: int
    parts_bytes: dict[str, int]
    device_bytes: int
    """What the device offers: its free memory at planning, in bytes."""
    fits: bool
    time_s: float
    disk_bytes: int
