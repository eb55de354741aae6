"""`toolbox.load_model` and `toolbox.apply_tuner`: a model by name, and the tuner that is to train it."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from toolbox import device, methods, targets
from toolbox.errors import InputError
from toolbox.face.here import prepare
from toolbox.face.session import Caller, built, open_session
from toolbox.i18n import _
from toolbox.plan import FinetunePlan
from toolbox.planning import plan_finetune
from toolbox.targets import Target
from toolbox.wishes import Wishes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class LanguageModel:
    """A model, or one with an adapter, by name: what a plan can state. Weights are loaded when they are asked for.

    `facts` is what is known without loading it: parameters, layers, where it lies.
    """

    def __init__(self, target: Target, session: Caller, tuner: Wishes | None = None) -> None:
        self.target, self.facts, self.session, self.tuner = target, target.model, session, tuner
        self._untrained = tuner and _planned(target, tuner, session)

    def __repr__(self) -> str:
        tuner = f", tuner={self.tuner.method!r}" if self.tuner else ""
        return f"LanguageModel({self.target.name!r}{tuner})"

    @property
    def model(self) -> "PreTrainedModel":
        """The torch module: as `evaluate` loads it, or with its tuner as training begins with it."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._loaded[1]

    @cached_property
    def _loaded(self) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
        prepare()
        if plan := self._untrained:
            from toolbox import loading
            from toolbox.training.tuner import tuner_for

            place = loading.torch_device(plan.device.kind, plan.device.index)
            return tuner_for(plan).load(place), loading.tokenizer(self.facts.path)
        from toolbox.commands.evaluate import EvaluateOptions, make_plan
        from toolbox.evaluation import loaded

        options = built(EvaluateOptions, "evaluate", {**self.named, "compare": False})
        subject = next(loaded(make_plan(options, self.session)))
        return subject.model, subject.tokenizer

    @property
    def named(self) -> dict[str, str]:
        """The options `model`, `adapter` and `run` that name it to a verb."""
        if self.target.run:
            return {"run": self.target.run}
        return {"model": self.facts.id, **({"adapter": str(self.target.adapter)} if self.target.adapter else {})}

    def chat(self, messages: str | Sequence[dict[str, Any]], max_new_tokens: int = 256, **sampling: Any) -> str:
        """Its answer to a question, or its next turn in a conversation of `{"role": …, "content": …}`.

        Greedy; `do_sample=True` and `seed` sample from its own distribution.
        """
        from toolbox.inference import generate

        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return generate(self.model, self.tokenizer, [turns], max_new_tokens=max_new_tokens, **sampling)[0]


def load_model(
    name: str | Path = "", *, run: str = "", adapter: str | Path = "", home: str | None = None
) -> LanguageModel:
    """The model `demo`, a folder, or OWNER/NAME of a hub, which is fetched where it is not here yet.

    `run`: what a run made, as `last`; `adapter`: a folder, on top of `name` or of its own base.
    Raises NotFoundError naming what there is, InputError where it can't be taken, HubError.
    """
    from toolbox.commands.finetune import find_model

    session = open_session(home)
    if name and not run:
        find_model(str(name), session)
    return LanguageModel(targets.resolve(str(name), str(adapter), run, session.home), session)


def apply_tuner(
    model: LanguageModel | str | Path,
    method: str = "lora",
    *,
    quantization: Literal["auto", "none", "nf4"] = "auto",
    **settings: Any,
) -> LanguageModel:
    """`model` with a tuner to be trained: a method of docs/tuners.md, with the settings of its class (`r=8`).

    The model given stays as it is. Raises InputError for a method, a setting or a combination that can't be.
    """
    model = model if isinstance(model, LanguageModel) else load_model(model)
    if model.target.adapter:
        raise InputError(
            _("{name} has an adapter already, and a tuner trains a whole model.").format(name=model.target.name),
            _("Merge it first: toolbox.merge gives a model."),
        )
    block = methods.find(method).block
    if settings and not block:
        raise InputError(
            _("{method} has no settings.").format(method=method), _("Give them to the trainer, as learning_rate=1e-5.")
        )
    wishes = Wishes(
        method=method,
        quantization=quantization,
        settings=[f"{block}.{name}={as_yaml(value)}" for name, value in settings.items()],
    )
    return LanguageModel(model.target, model.session, wishes)


def _planned(target: Target, tuner: Wishes, session: Caller) -> FinetunePlan:
    """How training would begin, whatever the data. Raises InputError where the tuner can't be."""
    return plan_finetune(target.model, [], device.probe().best, tuner, session.home, must_fit=False)


def as_yaml(value: Any) -> str:
    """`value` as `--set KEY=VALUE` reads it."""
    return msgspec.json.encode(value).decode()
