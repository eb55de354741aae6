"""Random numbers: set once, kept in checkpoints, so that a run can be repeated and resumed to the same numbers."""

import torch
from transformers import set_seed

__all__ = ["restore", "set_seed", "snapshot"]


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
