"""Log-probabilities by the model as it comes, computed once before the training and kept in the run."""

import hashlib
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from toolbox import files
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.training import store, trees
from toolbox.training.rows import Sample
from toolbox.training.step import Forward
from toolbox.training.store import Items

FILE = "reference.safetensors"
READ = 256
"""Items that are read at once."""


class Reference:
    """The reference model's log-probability of each sequence's answer.

    The model before the first step is the reference, whatever the tuner: no second model is loaded, and no step pays
    for a second forward pass.
    """

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan
        self._known = Known(np.zeros(0, np.uint64), np.zeros(0, np.float32))

    def prepare(
        self,
        forward: Forward,
        items: Items,
        sides: Callable[[Sequence[Any]], list[Sample]],
        run: Run,
        reporter: Reporter,
    ) -> None:
        """Compute those of all `sides` of `items`, or read what an earlier start has computed from the same.

        Raises Interrupted where a stop is asked for; then nothing is kept.
        """
        path, fingerprint = run.path / FILE, self._fingerprint(items)
        known = read(path, fingerprint)
        if known is None:
            reporter.phase(_("Computing what the model finds likely before the training"))
            known = self._compute(forward, items.by_size(), sides, reporter)
            write(path, known, fingerprint)
        self._known = known

    def logps(self, samples: Sequence[Sample], like: torch.Tensor) -> torch.Tensor:
        """Those of `samples`, [samples], where and in the type that `like` is. Raises KeyError for an unknown one.

        `like`: the policy's. As long as none are computed, before the first step, the reference is the policy.
        """
        if not len(self._known.keys):
            return like.detach()
        wanted = np.array([_key(sample) for sample in samples], np.uint64)
        places = np.searchsorted(self._known.keys, wanted).clip(max=len(self._known.keys) - 1)
        if (self._known.keys[places] != wanted).any():
            raise KeyError("a sequence that was not there when the reference was computed")
        return torch.from_numpy(self._known.logps[places]).to(like)

    def _compute(
        self, forward: Forward, items: Items, sides: Callable[[Sequence[Any]], list[Sample]], reporter: Reporter
    ) -> "Known":
        """Answers to one prompt go together, so that they share it; never more tokens at once than a step may have."""
        longest = sides(list(items[-self._plan.training.per_device_train_batch_size :]))
        most = trees.grow(longest).tokens
        keys, values = array("Q"), array("f")
        forward.model.eval()
        with torch.no_grad():
            for part in items.in_parts(READ):
                samples = sides(list(part))
                for batch in trees.batched(samples, most):
                    if reporter.stopping:
                        raise Interrupted(_("Stopped before the first step."))
                    chosen = [samples[place] for place in batch]
                    keys.extend(map(_key, chosen))
                    values.extend(forward.logps(chosen).tolist())
        forward.model.train()
        unique, places = np.unique(np.frombuffer(keys, np.uint64), return_index=True)
        return Known(unique, np.frombuffer(values, np.float32)[places])

    def _fingerprint(self, items: Items) -> str:
        """Tells whether the model as it comes, the arithmetic and the rows are the same as they were."""
        plan = self._plan
        model = [plan.model, plan.method, plan.dtype, plan.quantization, plan.LoraConfig, plan.blocks, plan.seed]
        facts = msgspec.json.encode([*model, plan.BitsAndBytesConfig, items.store.digest], enc_hook=str)
        return hashlib.sha256(facts + items.places.tobytes()).hexdigest()


class Known(msgspec.Struct):
    """Log-probabilities by the hashes of their sequences, in the order of these, [sequences] each."""

    keys: np.ndarray
    logps: np.ndarray


def write(path: Path, known: Known, fingerprint: str) -> None:
    metadata = {"fingerprint": fingerprint, "sha256": _digest(known)}
    files.write_bytes(path, save({"keys": known.keys, "logps": known.logps}, metadata))


def read(path: Path, fingerprint: str) -> Known | None:
    """What `write` wrote for the same fingerprint; None where it is absent, torn, or of something else."""
    if not path.exists():
        return None
    files.refuse_foreign(path)
    try:
        with safe_open(path, "np") as file:
            metadata, known = file.metadata() or {}, Known(file.get_tensor("keys"), file.get_tensor("logps"))
    except (OSError, SafetensorError):
        return None
    return known if metadata == {"fingerprint": fingerprint, "sha256": _digest(known)} else None


def _digest(known: Known) -> str:
    return hashlib.sha256(known.keys.tobytes() + known.logps.tobytes()).hexdigest()


def _key(sample: Sample) -> int:
    return store.key([*sample.input_ids, *sample.labels])
