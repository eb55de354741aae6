"""Random numbers: set once, kept in checkpoints, so that a run can be repeated and resumed to the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic
from transformers import set_seed

__all__ = ["repeatable", "restore", "set_seed", "snapshot"]


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """On a processor, while it is entered: what several threads add to one place is added in one order.

    Rows that begin alike add their gradients up at the last token they share, by `index_put_`, whose threads else come
    as they come: of 300 such sums on two threads 293 differed in their last bits.
    """
    if device != "cpu":
        yield
        return
    before = torch.get_deterministic_debug_mode(), deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_deterministic_debug_mode("warn")
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        deterministic.fill_uninitialized_memory = before[1]  # type: ignore[attr-defined]


def snapshot(device: str) -> dict[str, torch.Tensor]:
    """The states of the generators that training draws from (dropout), as uint8 tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.startswith("cuda"):
        states["cuda"] = torch.cuda.get_rng_state(device)
    if device == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def restore(states: dict[str, torch.Tensor], device: str) -> None:
    """Set the generators back; a state of a device that is not in use any more is left out."""
    torch.set_rng_state(states["cpu"])
    if device.startswith("cuda") and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
