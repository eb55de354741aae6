"""Methods of tuning (`--method NAME`): what each trains, whose class takes its settings, whether it merges."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import msgspec

from toolbox import files, plugins
from toolbox.errors import InputError
from toolbox.i18n import N_, _

Kind = Literal["adapter", "weights", "loreft"]
"""What is trained: a peft adapter; the model's own weights, all or some; interventions on hidden states."""


class LoraPlusConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """LoRA+ (arXiv:2402.12354): B learns faster than A."""

    loraplus_lr_ratio: Annotated[float, msgspec.Meta(gt=0)] = 16.0
    """Learning rate of B over that of A; 16 is the paper's (section 5)."""


class FreezeConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """Freezing by layers: the rest of the model stays as it is."""

    layers: int = 2
    """Decoder layers that are trained: the last so many; the first where it is negative."""
    modules: list[str] = []
    """Other modules that are trained, by name, as lm_head."""


class LisaConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """LISA (arXiv:2403.17919, algorithm 1): embeddings and head always, and a few random layers at a time."""

    layers: Annotated[int, msgspec.Meta(ge=1)] = 2
    """Decoder layers trained at a time (γ)."""
    interval_steps: Annotated[int, msgspec.Meta(ge=1)] = 5
    """Optimizer steps until others are drawn (K)."""


class LoreftConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """LoReFT (arXiv:2404.03592, equation 2): h + Rᵀ(Wh + b − Rh) on the hidden states that layers give."""

    r: Annotated[int, msgspec.Meta(ge=1)] = 4
    layers: list[int] = []
    """Decoder layers whose output is changed, from 0; empty: all."""
    positions: int = 0
    """Only the first so many tokens of a row; 0: all."""


class GaloreConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """GaLore (arXiv:2403.03507, algorithm 2), with galore-torch's names and defaults."""

    rank: Annotated[int, msgspec.Meta(ge=1)] = 128
    update_proj_gap: Annotated[int, msgspec.Meta(ge=1)] = 200
    """Optimizer steps between two projections."""
    scale: float = 0.25


class ApolloConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """APOLLO (arXiv:2412.05270, algorithm 1), with apollo-torch's names and defaults."""

    rank: Annotated[int, msgspec.Meta(ge=1)] = 256
    update_proj_gap: Annotated[int, msgspec.Meta(ge=1)] = 200
    scale: float = 1.0


LOREFT = "LOREFT"
"""The `peft_type` of our own adapters, of which peft knows nothing."""
OWN_BLOCKS: dict[str, type[msgspec.Struct]] = {
    struct.__name__: struct
    for struct in (LoraPlusConfig, FreezeConfig, LisaConfig, LoreftConfig, GaloreConfig, ApolloConfig)
}
"""Settings that no library has a class for, under names of our own."""


class Method(msgspec.Struct, kw_only=True, frozen=True):
    """A line of the table."""

    name: str
    summary: str
    paper: str
    """Where it is described; empty where it needs no paper."""
    kind: Kind = "adapter"
    tuner: str = ""
    """The plugin that trains it; empty: the tuner of its kind."""
    block: str = "LoraConfig"
    """The class that takes its settings: peft's, or one of ours."""
    settings: dict[str, Any] = {}
    """What they are where a recipe does not say."""
    also: dict[str, dict[str, Any]] = {}
    """Settings of further blocks."""
    rate: float = 1.0
    """A learning rate that suits it, as a multiple of LoRA's."""
    optim: str = ""
    """The optimizer it is, where it is one."""
    unmergeable: str = ""
    """Why it can't be merged; empty where it can."""
    served: bool = True
    """Whether the engine that comes along answers with it, unmerged, as it was trained."""
    nf4: bool = False
    """Whether it trains on a base in 4 bits."""
    common: bool = False
    """Whether the menu offers it before it is asked for."""

    @property
    def blocks(self) -> dict[str, dict[str, Any]]:
        """Every block that it takes, with its defaults."""
        return ({self.block: self.settings} if self.block else {}) | self.also


ALL = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
HIDDEN = N_("it changes hidden states, not weights")
PROMPTS = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"})
"""peft's tuners that learn prompts: none is trained here, but adapters of them are about."""

METHODS = (
    Method(name="lora", summary=N_("LoRA: two small matrices beside each weight"), paper="arXiv:2106.09685",
           nf4=True, common=True),
    Method(name="qlora", summary=N_("LoRA over a base in 4 bits"), paper="arXiv:2305.14314", nf4=True, common=True),
    Method(name="full", summary=N_("All weights"), paper="", kind="weights", block="", rate=0.05, common=True),
    Method(name="dora", summary=N_("LoRA that learns direction and length apart"), paper="arXiv:2402.09353",
           settings={"use_dora": True}, nf4=True, common=True),
    Method(name="rslora", summary=N_("LoRA scaled by the root of its rank, for large ranks"), paper="arXiv:2312.03732",
           settings={"use_rslora": True}, rate=0.5, nf4=True, common=True),
    Method(name="lora+", summary=N_("LoRA whose B learns faster than its A"), paper="arXiv:2402.12354",
           also={"LoraPlusConfig": {"loraplus_lr_ratio": 16}}, rate=0.25, nf4=True, common=True),
    Method(name="pissa", summary=N_("LoRA that begins with the largest singular values"), paper="arXiv:2404.02948",
           settings={"init_lora_weights": "pissa"}, rate=0.5, common=True),
    Method(name="olora", summary=N_("LoRA that begins with orthonormal matrices"), paper="arXiv:2406.01775",
           settings={"init_lora_weights": "olora"}, rate=0.1),
    Method(name="lora-fa", summary=N_("LoRA with A frozen: fewer activations are kept"), paper="arXiv:2308.03303",
           rate=2, nf4=True),
    Method(name="adalora", summary=N_("LoRA that gives rank to the weights that need it"), paper="arXiv:2303.10512",
           block="AdaLoraConfig", settings={**ALL, "init_r": 12, "target_r": 8}, rate=5,
           nf4=True, common=True),
    Method(name="oft", summary=N_("Weights turned by blocks of a rotation"), paper="arXiv:2306.07280",
           block="OFTConfig", settings={**ALL, "oft_block_size": 32}, nf4=True, common=True),
    Method(name="boft", summary=N_("Weights turned by butterfly factors"), paper="arXiv:2311.06243",
           block="BOFTConfig", settings={**ALL, "boft_block_size": 8, "boft_n_butterfly_factor": 1}, rate=2),
    Method(name="vera", summary=N_("Vectors that scale two random matrices shared by all layers"),
           paper="arXiv:2310.11454", block="VeraConfig", settings={**ALL, "r": 256}, rate=10, nf4=True),
    Method(name="ia3", summary=N_("Vectors that scale keys, values, inner activations"), paper="arXiv:2205.05638",
           block="IA3Config", settings={"task_type": "CAUSAL_LM"}, rate=10, nf4=True, common=True),
    Method(name="loha", summary=N_("Hadamard product of two low-rank matrices"), paper="arXiv:2108.06098",
           block="LoHaConfig", settings={**ALL, "r": 8, "alpha": 16}, rate=2),
    Method(name="lokr", summary=N_("Kronecker product of small matrices"), paper="arXiv:2309.14859",
           block="LoKrConfig", settings={**ALL, "r": 8, "alpha": 16}, rate=2),
    Method(name="fourierft", summary=N_("A few frequencies of each weight's spectrum"), paper="arXiv:2405.03003",
           block="FourierFTConfig", settings={**ALL, "n_frequency": 1000, "init_weights": True}, rate=20),
    Method(name="waveft", summary=N_("A few wavelet coefficients of each weight"), paper="arXiv:2505.12532",
           block="WaveFTConfig", settings=ALL),
    Method(name="miss", summary=N_("Blocks of a weight that share one update"), paper="arXiv:2409.15371",
           block="MissConfig", settings={**ALL, "r": 64}, rate=0.5),
    Method(name="shira", summary=N_("A few entries of each weight, at random places"), paper="arXiv:2406.13175",
           block="ShiraConfig", settings={**ALL, "r": 32, "random_seed": 42}, rate=0.5),
    Method(name="hra", summary=N_("Householder reflections of each weight"), paper="arXiv:2405.17484",
           block="HRAConfig", settings={**ALL, "r": 8}),
    Method(name="randlora", summary=N_("A full-rank sum of scaled random matrices"), paper="arXiv:2502.00987",
           block="RandLoraConfig", settings={**ALL, "r": 32}, nf4=True),
    Method(name="hira", summary=N_("LoRA multiplied with the weight itself"), paper="OpenReview TwJrTz9cRS",
           block="HiraConfig", settings={**ALL, "r": 32}, rate=5, nf4=True),
    Method(name="vblora", summary=N_("LoRA put together from one bank of vectors"), paper="arXiv:2405.15179",
           block="VBLoRAConfig", settings={**ALL, "num_vectors": 90, "vector_length": 64}, rate=5),
    Method(name="c3a", summary=N_("Circular convolutions by blocks"), paper="arXiv:2407.19342",
           block="C3AConfig", settings={**ALL, "block_size": 64}, rate=10),
    Method(name="road", summary=N_("Pairs of outputs turned and scaled"), paper="arXiv:2409.00119",
           block="RoadConfig", settings=ALL, rate=5, nf4=True),
    Method(name="delora", summary=N_("LoRA that learns strength and direction apart"), paper="arXiv:2503.18225",
           block="DeloraConfig", settings={**ALL, "r": 8}),
    Method(name="gralora", summary=N_("LoRA by blocks of each weight"), paper="arXiv:2505.20355",
           block="GraloraConfig", settings={**ALL, "r": 32}),
    Method(name="psoft", summary=N_("A rotation in the principal subspace of each weight"), paper="arXiv:2505.11235",
           block="PsoftConfig", settings={**ALL, "r": 32}),
    Method(name="ln", summary=N_("The norms of all layers"), paper="arXiv:2312.11420",
           block="LNTuningConfig", settings={"task_type": "CAUSAL_LM"}, rate=5),
    Method(name="loreft", summary=N_("Edits of hidden states in a low-rank subspace"), paper="arXiv:2404.03592",
           kind="loreft", block="LoreftConfig", settings={"r": 4}, unmergeable=HIDDEN, served=False,
           rate=4, nf4=True, common=True),
    Method(name="freeze", summary=N_("The last layers only"), paper="", kind="weights", block="FreezeConfig",
           settings={"layers": 2}, rate=0.1, common=True),
    Method(name="lisa", summary=N_("All weights, a few random layers at a time"), paper="arXiv:2403.17919",
           kind="weights", block="LisaConfig", settings={"layers": 2, "interval_steps": 5}, rate=0.1, common=True),
    Method(name="galore", summary=N_("All weights, with gradients projected to a low rank"), paper="arXiv:2403.03507",
           kind="weights", block="GaloreConfig", settings={"rank": 128, "update_proj_gap": 200, "scale": 0.25},
           rate=0.2, optim="galore_adamw"),
    Method(name="apollo", summary=N_("All weights, with memory as for gradient descent"), paper="arXiv:2412.05270",
           kind="weights", block="ApolloConfig", settings={"rank": 256, "update_proj_gap": 200, "scale": 1.0},
           rate=0.05, optim="apollo_adamw"),
)  # fmt: skip
"""Defaults are the papers' or peft's own. With its rate each lowers the embedded model's held-out loss within four
steps (docs/tuners.json), AdaLoRA by next to nothing: it begins at zero. No rate is claimed to be the best."""

_BY_NAME = {method.name: method for method in METHODS}
PEFT_FOLDERS = {
    "LoraConfig": "lora", "AdaLoraConfig": "adalora", "OFTConfig": "oft", "BOFTConfig": "boft", "VeraConfig": "vera",
    "IA3Config": "ia3", "LoHaConfig": "loha", "LoKrConfig": "lokr", "FourierFTConfig": "fourierft",
    "WaveFTConfig": "waveft", "MissConfig": "miss", "ShiraConfig": "shira", "HRAConfig": "hra",
    "RandLoraConfig": "randlora", "HiraConfig": "hira", "VBLoRAConfig": "vblora", "C3AConfig": "c3a",
    "RoadConfig": "road", "DeloraConfig": "delora", "GraloraConfig": "gralora", "PsoftConfig": "psoft",
    "LNTuningConfig": "ln_tuning",
}  # fmt: skip
"""The folder of peft's `tuners/` that defines each class."""


def find(name: str) -> Method:
    """The method of that name. Raises InputError naming what is near, else what there is."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    own = _own_names()
    if name in own:
        return _of_plugin(name)
    known = [*_BY_NAME, *own]
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    remedy = _("Did you mean {name}?").format(name=_(" or ").join(near)) if near else ""
    raise InputError(
        _("There is no method {name!r}.").format(name=name),
        remedy or _("Methods: {names}.").format(names=", ".join(known)),
    )


def every() -> list[Method]:
    """The table, and below it what plugin files add; those of packages are imported only where they are named."""
    return [*METHODS, *(_of_plugin(name) for name in plugins.of_files("tuner"))]


def _own_names() -> list[str]:
    return [name for name in plugins.added("tuner") if name not in _BY_NAME]


def _of_plugin(name: str) -> Method:
    """What a plugin says of itself as `method`; else its docstring, and that it trains the model's own weights."""
    tuner = plugins.find("tuner", name)
    said = getattr(tuner, "method", None) or Method(name=name, summary="", paper="", kind="weights", block="", rate=0.1)
    if not isinstance(said, Method):
        raise plugins.wrong("tuner", name, _("its `method` is no {kind}").format(kind="toolbox.methods.Method"))
    summary = said.summary or (tuner.__doc__ or name).strip().splitlines()[0].rstrip(".")
    return msgspec.structs.replace(said, name=name, summary=summary, tuner=name, common=True)


class Configured(Protocol):
    """A recipe or a plan."""

    @property
    def method(self) -> str: ...
    @property
    def LoraConfig(self) -> dict[str, Any]: ...
    @property
    def blocks(self) -> dict[str, dict[str, Any]]: ...


def settings(of: Configured, block: str = "") -> dict[str, Any]:
    """What `of` says for the class `block`; without one, for its method's own."""
    block = block or find(of.method).block
    return of.LoraConfig if block == "LoraConfig" else of.blocks.get(block, {})


def own(of: Configured, block: str) -> Any:
    """The settings of one of our own classes, checked. Raises InputError where a value can't be."""
    try:
        return msgspec.convert(settings(of, block), OWN_BLOCKS[block])
    except msgspec.ValidationError as error:
        raise InputError(
            _("{block} can't be used: {reason}.").format(block=block, reason=str(error).rstrip(".")),
            _("Known keys: {keys}.").format(keys=", ".join(OWN_BLOCKS[block].__struct_fields__)),
        ) from None


def trained_weights(name: str) -> bool:
    """Whether a method changes the model's own weights, so that it leaves a model and no adapter."""
    return find(name).kind == "weights"


PROMPT = N_("it is a prompt before the text, not a change of weights")
BESIDE_WEIGHTS = {
    **dict.fromkeys((*PROMPTS, "ADAPTION_PROMPT"), PROMPT),
    "XLORA": N_("it mixes adapters anew for each token"), "POLY": N_("it mixes adapters anew for each task"),
    "LILY": N_("it adds to what a layer says, with a router"),
}  # fmt: skip
"""Kinds of peft's that no method here trains, and why they can't become weights."""
RANDOM_BEGIN = "pissa_niter"
"""How init_lora_weights begins where peft begins anew each time it loads the adapter (torch.svd_lowrank)."""
LIKEWISE = ("loftq", "lora_ga")
"""Such values as MUTATING that no method here has."""
MUTATING = ("pissa", "olora", "corda")
"""Values of `init_lora_weights` that take the adapter's beginning off the base, so that the sum begins as the base."""


def changes_base(of: Configured) -> bool:
    """Whether a method leaves no base behind that is the model as it came: weights are trained, or an adapter's
    beginning was taken off them."""
    return trained_weights(of.method) or str(settings(of).get("init_lora_weights")).startswith(MUTATING)


def of_adapter(folder: Path) -> Method | None:
    """The method that made the adapter in `folder`, by its adapter_config.json; None where no method here does."""
    config: Mapping[str, Any] = files.read_json(folder / "adapter_config.json") or {}
    kind = str(config.get("peft_type", "")).replace("_", "").upper()
    if kind == "LORA":
        return find("dora" if config.get("use_dora") else "lora")
    blocks = {method.block.removesuffix("Config").upper(): method for method in METHODS if method.kind != "weights"}
    return blocks.get(kind)


def scores(folder: Path) -> bool:
    """Whether the adapter in `folder` makes a reward model of its base."""
    config: Mapping[str, Any] = files.read_json(folder / "adapter_config.json") or {}
    return config.get("task_type") == "SEQ_CLS"


def refuse_unmergeable(folder: Path) -> None:
    """Raise InputError where the adapter in `folder` can't become weights, saying why."""
    method = of_adapter(folder)
    config: Mapping[str, Any] = files.read_json(folder / "adapter_config.json") or {}
    why = method.unmergeable if method else BESIDE_WEIGHTS.get(str(config.get("peft_type", "")).upper(), "")
    if why:
        raise InputError(
            _("{path} can't be merged: {reason}.").format(path=folder, reason=_(why)),
            _("Use it on its base model: evaluate takes both."),
        )
    if str(config.get("init_lora_weights")).startswith(RANDOM_BEGIN):
        raise InputError(
            _("{path} begins with singular values found at random ({init}), which nobody finds again.").format(
                path=folder, init=config["init_lora_weights"]
            ),
            _("Save it again where it was trained, with peft's path_initial_model_for_weight_conversion."),
        )


def refuse_changed_base(folder: Path) -> None:
    """Raise InputError where an engine would put the adapter in `folder` onto another base than it was trained on."""
    config: Mapping[str, Any] = files.read_json(folder / "adapter_config.json") or {}
    if str(init := config.get("init_lora_weights")).startswith((*MUTATING, *LIKEWISE)):
        raise InputError(
            _(
                "{path} belongs onto a base that its beginning ({init}) was taken off; engines take the base as it is."
            ).format(path=folder, init=init),
            _("Leave out --adapter-only, or save it with peft's path_initial_model_for_weight_conversion."),
        )


def refuse_unserved(folder: Path, plain_only: bool) -> None:
    """Raise InputError where engines would not answer as the adapter in `folder` was trained to.

    `plain_only`: the engine takes nothing but LoRA.
    """
    kind = str((files.read_json(folder / "adapter_config.json") or {}).get("peft_type", ""))
    if kind in PROMPTS:
        raise InputError(
            _("{path} ({method}) can't be served: it puts learnt vectors before each prompt.").format(
                path=folder, method=kind
            ),
            _("Measure it with evaluate."),
        )
    method = of_adapter(folder)
    if not method or (method.served and not (plain_only and method.name != "lora")):
        return
    remedy = _("Merge it first: merge --adapter {path}").format(path=folder)
    raise InputError(
        _("{path} ({method}) can't be served unmerged: engines load it otherwise than it was trained.").format(
            path=folder, method=method.name
        ),
        _("Measure it with evaluate.") if method.unmergeable else remedy,
    )
