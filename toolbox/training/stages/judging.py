"""What `finetune --reward NAME --reward-model RUN` finds answers worth: functions by name, and a model that judges."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from toolbox import loading, rewards
from toolbox.datasets import Prompt
from toolbox.inference import in_batches
from toolbox.plan import FinetunePlan
from toolbox.stages import Grpo, Ppo

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from toolbox.rewards import Messages

MODEL = "reward_model"
"""The name of what a reward model finds."""


class Judges:
    """The reward functions and the reward model of one plan. Raises InputError where one is not there."""

    def __init__(self, plan: FinetunePlan, options: Ppo | Grpo) -> None:
        self._plan, wishes = plan, options.reward_funcs
        self._judges: dict[str, rewards.Reward] = {rewards.shown(wish, wishes): rewards.find(wish) for wish in wishes}
        if options.reward_model:
            self._judges[MODEL] = RewardModel(Path(options.reward_model), plan)
        self.names = list(self._judges)
        self.weights = options.reward_weights or [1.0] * len(self.names)

    def load(self) -> None:
        """Load the reward model, where there is one."""
        if isinstance(model := self._judges.get(MODEL), RewardModel):
            model.load()

    def judge(self, rows: Sequence[Prompt], answers: Sequence[str]) -> list[list[float]]:
        """What each function, in the order of `names`, finds of each answer; NaN where it does not judge one."""
        columns = {name: [row.columns.get(name) for row in rows] for row in rows for name in row.columns}
        prompts = [row.messages for row in rows]
        return [
            rewards.judge(name, function, prompts, list(answers), columns) for name, function in self._judges.items()
        ]


class RewardModel:
    """A model for sequence classification with one label, which reads conversations in its own template."""

    def __init__(self, path: Path, plan: FinetunePlan) -> None:
        self._device = loading.torch_device(plan.device.kind, plan.device.index)
        self._batch_size = 2 * plan.training.per_device_train_batch_size
        self._path, self._dtype = path, plan.dtype

    @cached_property
    def _loaded(self) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
        return loading.reward_model(self._path, self._dtype, self._device)

    def load(self) -> None:
        """Now, not at the first answer. Raises InputError where it is no reward model."""
        _ = self._loaded

    def __call__(self, prompts: list["Messages"], completions: list[str], **columns: list[object]) -> list[float]:
        """Its score of each answer."""
        tokenizer = self._loaded[1]
        conversations = [
            [*prompt, {"role": "assistant", "content": said}] for prompt, said in zip(prompts, completions, strict=True)
        ]
        texts = [str(tokenizer.apply_chat_template(turns, tokenize=False)) for turns in conversations]
        ids = [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        return in_batches(ids, len, self._scores, self._batch_size)

    @torch.no_grad()
    def _scores(self, rows: list[list[int]]) -> list[float]:
        model = self._loaded[0]
        pad, longest = model.config.pad_token_id, max(map(len, rows))
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=self._device)
        scores: list[float] = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return scores
