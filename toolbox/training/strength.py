"""How strongly a repair's adapter acts (`finetune`): chosen by what the repair kept aside, before it is written.

An adapter's part in the weights, B A, is multiplied by a strength, and what each strength does is measured: on
professions and templates that were neither trained on nor are judged by, and on answers that are not to change. So a
learning rate that is too high for a model does less harm, and one that is somewhat too low is made up for. Weights
between those before and after a training: M. Wortsman et al.: Robust fine-tuning of zero-shot models, arXiv:2109.01903;
beyond them: G. Ilharco et al.: Editing models with task arithmetic, arXiv:2212.04089.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import torch

from toolbox import inference, likelihoods, methods, repairing, strengths
from toolbox.errors import Interrupted
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.runs import Reporter, Run
from toolbox.strengths import Strength
from toolbox.suites import gender
from toolbox.training import layouts
from toolbox.training.step import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 5.0, 8.0)
"""Tried in this order, until too many answers change: nothing stronger is taken then. Without answers that could
change, nothing says what a strength costs, and what was trained is the strongest."""
ANSWER_TOKENS = 16
"""An answer counts as unchanged by its first tokens: where a long one is worded otherwise later, little is lost."""


def choose(
    plan: FinetunePlan, forward: Forward, tokenizer: "PreTrainedTokenizerBase", run: Run, reporter: Reporter
) -> dict[str, Any]:
    """Give the trained adapter its strength; returns `strength` for the result, empty where there is nothing to choose.

    That is where the rows are no repair's, nothing was kept aside, or the method is not linear in B.
    Raises Interrupted, after which the newest checkpoint has the adapter as it was trained.
    """
    from toolbox.evaluation.gender import bias_by_likelihood  # which itself asks how training lays out a batch
    from toolbox.evaluation.subjects import Loaded

    folder = repairing.folder_of(spec.path for spec in plan.datasets)
    if folder is None or not _is_linear(plan):
        return {}
    portraits, own = gender.read(folder / repairing.CHOOSING), _own(folder)
    reporter.phase(_("Choosing the strength of the repair"))
    tried: list[Strength] = []
    known: list[int] = []
    with torch.no_grad(), layouts.generating(forward), forward.autocast():
        rows = _answers(tokenizer, own)
        for strength in (0.0, *STRENGTHS):
            _heed_stop(run, reporter)
            with _scaled(forward.model, strength):
                bias = bias_by_likelihood(Loaded("tuned", forward.model, tokenizer), portraits)
                same = _unchanged(forward.model, rows)
            known = known if tried else [place for place, is_same in enumerate(same) if is_same]
            share = sum(same[place] for place in known) / len(known) if known else 1.0
            tried.append(Strength(strength, bias, share))
            if share < strengths.UNCHANGED or (strength >= 1.0 and not known):
                break
    chosen = strengths.strongest(tried)
    _apply(forward.model, chosen.strength)
    print(_("The repair is applied at {strength:g} of its strength.").format(strength=chosen.strength), flush=True)
    people = len({(row.profession, row.language) for row in portraits})
    return {
        "strength": {
            "chosen": chosen.strength, "professions": people, "answers": len(known),
            "tried": [one._asdict() for one in tried],
        }
    }  # fmt: skip


def _is_linear(plan: FinetunePlan) -> bool:
    """Whether what was trained is B A and nothing else: no magnitudes, biases, or whole modules."""
    settings = methods.settings(plan)
    others = any(settings.get(name) for name in ("use_dora", "modules_to_save", "trainable_token_indices"))
    plain = methods.find(plan.method).block == "LoraConfig" and not methods.changes_base(plan)
    return plain and not others and settings.get("bias", "none") == "none"


def _own(folder: Path) -> list[repairing.Own]:
    lines = (folder / repairing.OWN).read_bytes().splitlines()
    return [repairing.Own(**msgspec.json.decode(line)) for line in lines]


def _heed_stop(run: Run, reporter: Reporter) -> None:
    if reporter.stopping:
        raise Interrupted(
            _("Interrupted before the strength was chosen; the training is saved."),
            _("Go on with: {command}").format(command=run.command("runs", "resume")),
        )


def _answers(tokenizer: "PreTrainedTokenizerBase", own: Sequence[repairing.Own]) -> list[tuple[list[int], int]]:
    """(ids of question and answer, where the answer begins)."""
    rows = []
    for question, said in own:
        talk = [{"role": "user", "content": question}]
        begin = len(inference.prompt_ids(tokenizer, talk))
        rows.append((inference.prompt_ids(tokenizer, talk, said)[: begin + ANSWER_TOKENS], begin))
    return rows


def _unchanged(model: Any, rows: Sequence[tuple[list[int], int]]) -> list[bool]:
    """Whether the model would write each answer token by token."""
    return [all(best for _value, best in values) for values in likelihoods.scored_tokens(model, rows)]


def _layers(model: Any) -> Iterator[Any]:
    from peft.tuners.lora import LoraLayer

    return (module for module in model.modules() if isinstance(module, LoraLayer))


@contextmanager
def _scaled(model: Any, strength: float) -> Iterator[None]:
    before = [(layer.scaling, dict(layer.scaling)) for layer in _layers(model)]
    for scaling, was in before:
        scaling.update({name: strength * value for name, value in was.items()})
    try:
        yield
    finally:
        for scaling, was in before:
            scaling.update(was)


def _apply(model: Any, strength: float) -> None:
    """Into the weights B, so that whatever loads the adapter needs to know of nothing."""
    with torch.no_grad():
        for layer in _layers(model):
            for weight in (*(one.weight for one in layer.lora_B.values()), *layer.lora_embedding_B.values()):
                weight.mul_(strength)
