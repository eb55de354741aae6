"""Log-probabilities by the model as it comes, computed once before the training and kept in the run."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from toolbox import files
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.training import trees
from toolbox.training.rows import Sample
from toolbox.training.step import Forward

FILE = "reference.safetensors"


class Reference:
    """The reference model's log-probability of each sequence's answer.

    The model before the first step is the reference, whatever the tuner: no second model is loaded, and no step pays
    for a second forward pass.
    """

    def __init__(self, plan: FinetunePlan) -> None:
        self._plan = plan
        self._known: dict[bytes, float] = {}

    def prepare(self, forward: Forward, sequences: Sequence[Sample], run: Run, reporter: Reporter) -> None:
        """Compute all, or read what an earlier start of the run has computed from the same model and rows.

        Raises Interrupted where a stop is asked for; then nothing is kept.
        """
        unique = list({_key(sample): sample for sample in sequences}.items())
        keys, path = [key for key, _sample in unique], run.path / FILE
        fingerprint = self._fingerprint(keys)
        values = read(path, fingerprint)
        if values is None:
            reporter.phase(_("Computing what the model finds likely before the training"))
            values = self._compute(forward, [sample for _key, sample in unique], reporter)
            write(path, values, fingerprint)
        self._known = dict(zip(keys, values.tolist(), strict=True))

    def logps(self, samples: Sequence[Sample], like: torch.Tensor) -> torch.Tensor:
        """Those of `samples`, [samples], where and in the type that `like` is."""
        return torch.tensor([self._known[_key(sample)] for sample in samples], dtype=like.dtype, device=like.device)

    def _compute(self, forward: Forward, samples: list[Sample], reporter: Reporter) -> torch.Tensor:
        """Answers to one prompt go together, so that they share it; never more tokens at once than a step may have."""
        grown = sorted(trees.grow(samples), key=lambda tree: trees.tokens(samples, tree))
        most = sum(trees.tokens(samples, tree) for tree in grown[-self._plan.training.per_device_train_batch_size :])
        values = torch.zeros(len(samples))
        forward.model.eval()
        with torch.no_grad():
            for batch in trees.batched(samples, grown, most):
                if reporter.stopping:
                    raise Interrupted(_("Stopped before the first step."), _("Start it again."))
                values[batch] = forward.logps([samples[place] for place in batch]).cpu()
        forward.model.train()
        return values

    def _fingerprint(self, keys: Sequence[bytes]) -> str:
        """Tells whether the model as it comes, the arithmetic and the sequences are the same as they were."""
        plan = self._plan
        model = [plan.model, plan.method, plan.dtype, plan.quantization, plan.LoraConfig, plan.blocks, plan.seed]
        facts = msgspec.json.encode([*model, plan.BitsAndBytesConfig], enc_hook=str)
        return hashlib.sha256(facts + b"".join(keys)).hexdigest()


def write(path: Path, values: torch.Tensor, fingerprint: str) -> None:
    metadata = {"fingerprint": fingerprint, "sha256": _digest(values)}
    files.write_bytes(path, save({"logps": values}, metadata))


def read(path: Path, fingerprint: str) -> torch.Tensor | None:
    """What `write` wrote for the same fingerprint; None where it is absent, torn, or of something else."""
    try:
        with safe_open(path, "pt") as file:
            metadata, values = file.metadata() or {}, file.get_tensor("logps")
    except (OSError, SafetensorError):
        return None
    return values if metadata == {"fingerprint": fingerprint, "sha256": _digest(values)} else None


def _digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()


def _key(sample: Sample) -> bytes:
    return hashlib.sha256(msgspec.json.encode((sample.input_ids, sample.labels))).digest()
