"""Plans: everything that is decided before work starts, one kind a verb; a job needs nothing else.

Each verb makes its own; `finetune`'s is made by planning.py.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from toolbox import __version__
from toolbox import plugins as plugs
from toolbox.datasets import DatasetSpec
from toolbox.device import Device
from toolbox.engines import Name as EngineName
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.limits import Limits
from toolbox.memory import Estimate
from toolbox.models import ModelFacts
from toolbox.recipe import Training
from toolbox.stages import AnyOptions, StageName


class Plan(msgspec.Struct, kw_only=True, tag_field="verb", forbid_unknown_fields=True):
    """What every plan states. `entry` is the function of the work layer that the job calls, as `module:function`."""

    entry: str
    model: ModelFacts
    device: Device
    seed: int = 42
    version: str = __version__
    plugins: list[plugs.File] = []
    """What the job loads first, from copies in the run's folder."""

    @property
    def verb(self) -> str:
        return str(self.__struct_config__.tag)


class FinetunePlan(Plan, kw_only=True, tag="finetune"):
    stage: StageName = "sft"
    options: AnyOptions | None = None
    """The stage's own; None: its defaults, or it has none."""
    recipe: str
    why: str
    method: str
    """A name of `methods.METHODS`."""
    quantization: Literal["none", "nf4"]
    dtype: Literal["float32", "bfloat16", "float16"]
    datasets: list[DatasetSpec]
    chat_template: str = ""
    """The text of the template given to a model; empty: its own."""
    eval_rows: int
    """Rows held out of the data for the evaluation loss, drawn by the seed; the run's held_out.json names them."""
    eval_datasets: list[DatasetSpec] = []
    """Data sets whose rows are for the evaluation loss only."""
    training: Training
    LoraConfig: dict[str, Any] = {}
    BitsAndBytesConfig: dict[str, Any] = {}
    blocks: dict[str, dict[str, Any]] = {}
    """What other classes take, by their names, as `OFTConfig`."""
    callbacks: list[str] = []
    """Plugins that look on."""
    allow_4bit: bool = False
    """Whether the base may be put into 4 bits where memory runs out."""
    allow_shorter: bool = False
    """Whether rows may be cut shorter where memory runs out."""
    tensorboard: Path | None = None
    """Folder of the TensorBoard files; None: inside the run."""
    tune: bool = False
    """Whether the job first tries micro-batches and learning rates, and writes what it chose here."""
    estimate: Estimate


class ExactPlan(FinetunePlan, kw_only=True, tag="plan"):
    """A dry run of what a FinetunePlan says, by `plan --exact`."""

    config: dict[str, Any] = {}
    """The values of config.json of a model that is not here."""


class Mixture(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Adapters made into one before the merge, in the words of peft's `add_weighted_adapter`."""

    adapters: list[Path]
    weights: list[float]
    combination: str
    density: float | None = None
    """The share of an adapter's numbers that is kept; None: nothing is pruned."""


class MergePlan(Plan, kw_only=True, tag="merge"):
    adapter: Path
    """Of a mixture the first one, whose tokenizer and template are taken."""
    mixture: Mixture | None = None
    output: Path
    dtype: Literal["float32", "bfloat16", "float16"]
    quantization: Literal["none", "nf4"] = "none"
    BitsAndBytesConfig: dict[str, Any] = {}
    """nf4: the base as the adapter was trained on it."""
    onto: Literal["dequantized", "original"] = "dequantized"
    """nf4: merged onto those weights dequantised, or onto the ones from before they were put into 4 bits."""
    run: str = ""
    """The finetune run that the adapter comes from, where there is one."""
    datasets: list[DatasetSpec] = []
    """Rows of these prove the merge; the embedded ones where none are known."""

    @property
    def dequantizes(self) -> bool:
        """Whether the merged weights went through 4 bits, as the base did in training."""
        return self.quantization == "nf4" and self.onto == "dequantized"


class ExportPlan(Plan, kw_only=True, tag="export"):
    format: str
    """A name of `exports.FORMATS`."""
    type: str
    """How it stores weights: a name of that format's `types`."""
    output: Path
    python: Path | None = None
    """The format's own interpreter, where it has one."""
    adapter: Path | None = None
    """Merged into the model first, with proof, unless it is exported alone."""
    adapter_only: bool = False
    run: str = ""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What is merged in, and what both sides are measured in."""
    quantization: Literal["none", "nf4"] = "none"
    BitsAndBytesConfig: dict[str, Any] = {}
    """nf4: the base as the adapter was trained on it."""
    datasets: list[DatasetSpec]
    """Rows of these are measured with; the embedded ones where none are known."""
    held_out: dict[str, list[int]] = {}
    """The rows that the training never saw, by data set; empty: all."""
    calibration: list[DatasetSpec] = []
    """Rows that the format chooses its numbers by; never those that it is measured with, where there are others."""
    settings: dict[str, Any] = {}
    """What the format's library takes beside the type, by its own names."""


class EvaluatePlan(Plan, kw_only=True, tag="evaluate"):
    adapter: Path | None = None
    run: str = ""
    suites: list[str]
    metrics: list[str] = []
    """Of plugins, for answers to questions."""
    limit: int = 0
    """Items a suite; 0 is all."""
    samples: int = 1
    """Programs drawn for each task of suites of code; 1: the greedy one."""
    compare: bool = True
    """With an adapter, or a base: measure the base model too, and show both."""
    base: ModelFacts | None = None
    """What a merged or fully tuned model came from."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "nf4"] = "none"
    BitsAndBytesConfig: dict[str, Any] = {}
    """nf4: the base as the adapter was trained on it."""
    endpoint: str = ""
    """The address of the server that is asked instead of a model of this machine. Keys are in the environment only."""
    endpoint_model: str = ""
    judge: str = ""
    """The address of the server whose model grades answers to open questions."""
    judge_model: str = ""
    cached: bool = True
    """Take answers that this very model gave before, and keep new ones for others."""
    backend: str = ""
    """A name of `backends.BACKENDS` that measures instead; `suites` are then what `backends.tasks` takes."""
    python: Path | None = None
    """The backend's interpreter."""
    arguments: dict[str, Any] = {}
    """The backend's own."""
    fetches: bool = False
    """Whether the backend may fetch rows of its tasks."""


class ServedAdapter(msgspec.Struct, frozen=True):
    """An adapter, and what clients call the model with it."""

    name: str
    path: Path


class ServePlan(Plan, kw_only=True, tag="serve"):
    adapters: list[ServedAdapter] = []
    name: str
    """What clients call the model itself."""
    engine: EngineName
    engine_why: str = ""
    """Why this engine."""
    python: Path
    """The engine's interpreter."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    host: str = "127.0.0.1"
    port: int = 8080
    api_keys: Path | None = None
    """A file of further keys, as `access.read_keys` reads it."""
    limits: Limits = Limits()
    log_contents: bool = False

    @property
    def default_name(self) -> str:
        """What answers a request that names no model: the first adapter, else the model itself."""
        return self.adapters[0].name if self.adapters else self.name


AnyPlan = FinetunePlan | ExactPlan | MergePlan | ExportPlan | EvaluatePlan | ServePlan


def load(path: Path) -> AnyPlan:
    """Read a plan.yaml. Raises InputError where it is torn or holds what no plan holds."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=AnyPlan, dec_hook=_construct)
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(
            _("The plan {path} can't be read: {reason}.").format(path=path, reason=error),
            _("Make it again: the command is in run.sh beside it."),
        ) from error


def convert(values: Mapping[str, Any]) -> AnyPlan:
    """A plan from plain data, structs and paths. Raises msgspec.ValidationError where no plan holds them."""
    return msgspec.convert(msgspec.to_builtins(values, enc_hook=str), AnyPlan, dec_hook=_construct)


def _construct(kind: type, value: Any) -> Any:
    """Paths are written as texts."""
    return kind(value) if kind is Path else value
