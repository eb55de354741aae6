"""Serving engines: where each one's interpreter lives, what it needs, and the command that starts it."""

import os
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from toolbox.config import Home, command_line
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.ports import LOOPBACK
from toolbox.runs import ROOT

BAKED = Path("/opt/yichuidingyin/engines")
"""Where the image keeps one environment an engine."""
GGUF = "model.gguf"
"""What the engine that serves GGUF finds it as."""
SERVED, TUNED = "served", "tuned-{number}"
"""What an engine calls the model, and adapters that it keeps apart; clients never see these names."""
FEATURES = frozenset({"adapters", "templates", "embeddings", "tools", "media", "logprobs"})
"""What an engine may have beyond writing: several adapters at once, each in a folder of its own; a chat template and
tokenizer of each adapter's own; /v1/embeddings; tool calls in the answer; pictures; log-probabilities."""
KEYED = Path(__file__).parent / "serving" / "keyed.py"
KEY_VARIABLES = ("YCDY_ENGINE_KEY", "VLLM_API_KEY")
"""Where engines look for the key that requests must bring as `Authorization: Bearer KEY`: others on this machine reach
loopback too. Not on the command line, which everybody can read."""

_KEPT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH",
    "CUDA_CACHE_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "XDG_CACHE_HOME",
    "TRITON_CACHE_DIR", "CC", "CXX",
)  # fmt: skip
"""The variables an engine inherits. Everything else stays out: keys, tokens, proxies, this package's PYTHONPATH."""


Own = Literal["vllm", "sglang", "lmdeploy", "llamacpp"]
"""Those with an environment of their own."""
Name = Literal["transformers", Own]


class Launch(msgspec.Struct, kw_only=True, frozen=True):
    """What an engine is started for. Folders are named as the engine sees them from its working folder."""

    model: str = SERVED
    adapters: tuple[tuple[str, str], ...] = ()
    """Names and folders, beside the model's; only for an engine with the feature "adapters"."""
    port: int
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    device: Literal["cuda", "mps", "cpu"]
    chat_template: bool = True
    """Whether the model's folder has a template."""
    calls: str = ""
    """How the template has the model write calls to tools: a name of `templates.calling`; empty: not known."""
    max_lora_rank: int = 0
    """The largest r among the adapters."""
    memory_free: float = 1.0
    """The share of the GPU's memory that is free."""
    context: int = 0
    """Tokens of a conversation, for an engine that keeps room for all of them from the start."""


class Engine(msgspec.Struct, kw_only=True, frozen=True):
    """A serving backend with an OpenAI-compatible port of its own."""

    name: Name
    requirement: str
    """What is installed into its environment, as pip is told."""
    needs_cuda: bool
    own_interpreter: bool
    features: frozenset[str] = frozenset()
    """Of `FEATURES`. Without "adapters" it is given one at most, as files beside the base's weights."""
    adds_bos: bool = False
    """It puts a bos_token before what the chat template rendered."""
    loads: frozenset[str] | None = None
    """The `quant_method`s of quantised models that it loads; None: what is installed beside it decides."""
    only: str = ""
    """The one `quant_method` that it loads, and that no other engine does."""
    context: int = 0
    """The most tokens of a conversation that it is started with; 0: the model's own."""
    keyed: str = ""
    """The option by which `serving/keyed.py` makes it ask for the key; empty: it does so by itself."""
    adapter_id: str = "{adapter}"
    """How a request names an adapter."""
    compiles: bool = False
    """It compiles kernels when it starts: it needs a C++ compiler and Python's headers."""
    health: str
    arguments: Callable[[Launch], list[str]]
    environ: dict[str, str] = {}
    """What its environment has besides."""
    ignores: frozenset[str] = frozenset()
    """Request fields that it accepts and then disregards: the gateway refuses them instead."""

    def interpreter(self, home: Home, environ: Mapping[str, str] = os.environ) -> Path | None:
        """The Python that runs it, or None where it is not installed."""
        if not self.own_interpreter:
            return Path(sys.executable) if all(map(find_spec, ("starlette", "uvicorn"))) else None
        return own_python(self.name, home, environ)

    def command(self, python: Path, launch: Launch) -> list[str]:
        """The command line that starts it on a loopback port; never with leave to run a model's own code."""
        start = [str(KEYED), self.keyed] if self.keyed else ["-m"]
        return [str(python), "-P", *start, *self.arguments(launch)]


def is_whole(folder: Path) -> bool:
    """Whether an environment was made to its end: the mark `preparing` lies in one that was not."""
    return os.access(folder / "bin" / "python", os.X_OK) and not (folder / "preparing").exists()


def own_python(name: str, home: Home, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The Python of the environment made from locks/NAME.txt, for an engine or a tool; None where there is none."""
    named = environ.get("YCDY_ENGINES")
    folders = [*([Path(named)] if named else []), BAKED, home.engines]
    found = (folder / name for folder in folders)
    return next((made / "bin" / "python" for made in found if is_whole(made)), None)


def preparing(name: str, home: Home) -> str:
    """The command line that makes that environment."""
    return command_line(home.path, "engines", "install", name)


def environment(
    cache: Path, device: str, gpu: int, key: str, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The clean environment an engine runs in: offline, quiet, one GPU, and nothing of ours that could leak.

    `cache`: the folder that Hugging Face's libraries may write to. `gpu`: `Device.index`, among the visible. `key`:
    what the engine is to ask of whoever connects, made for it alone.
    """
    kept = {name: environ[name] for name in _KEPT if name in environ}
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = visible[gpu].strip() if visible != [""] else str(gpu)
    shown = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": number if device == "cuda" else ""}
    return kept | shown | dict.fromkeys(KEY_VARIABLES, key) | {
        "HF_HOME": str(cache), "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false",
        "DO_NOT_TRACK": "1", "VLLM_NO_USAGE_STATS": "1", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip


def _transformers(launch: Launch) -> list[str]:
    # Not `transformers serve`: without continuous batching requests queue, and with it 5.23 samples every request with
    # the first one's parameters.
    adapters = [word for name, folder in launch.adapters for word in ("--adapter", f"{name}={folder}")]
    return [
        "toolbox.serving.batching", launch.model, "--port", str(launch.port), "--device", launch.device,
        "--dtype", launch.dtype, *adapters,
    ]  # fmt: skip


def _vllm(launch: Launch) -> list[str]:
    named = [f"{name}={folder}" for name, folder in launch.adapters]
    rank = next((size for size in VLLM_RANKS if size >= launch.max_lora_rank), launch.max_lora_rank)
    adapters = ["--max-loras", str(len(named)), "--max-lora-rank", str(rank), "--lora-modules", *named]
    tools = ["--enable-auto-tool-choice", "--tool-call-parser", PARSERS[launch.calls].vllm] if launch.calls else []
    # "auto" takes what context fits into memory; without it a long one keeps the engine from starting.
    return [
        "vllm.entrypoints.cli.main", "serve", launch.model, "--served-model-name", SERVED, "--host", LOOPBACK,
        "--port", str(launch.port), "--dtype", launch.dtype, "--max-model-len", "auto",
        "--gpu-memory-utilization", f"{min(0.9, 0.95 * launch.memory_free):.2f}", "--disable-fastapi-docs",
        "--disable-uvicorn-access-log", "--uvicorn-log-level", "warning", *tools,
        *(["--enable-lora", *adapters] if named else []),
    ]  # fmt: skip


def _sglang(launch: Launch) -> list[str]:
    named = [f"{name}={folder}" for name, folder in launch.adapters]
    # A batch holds the base's requests too, which count as one more adapter.
    adapters = ["--enable-lora", "--max-loras-per-batch", str(len(named) + 1), "--lora-paths", *named]
    tools = ["--tool-call-parser", PARSERS[launch.calls].sglang] if launch.calls else []
    return [
        "sglang.launch_server", "--model-path", launch.model, "--served-model-name", SERVED, "--host", LOOPBACK,
        "--port", str(launch.port), "--dtype", launch.dtype, "--device", "cuda", "--log-level", "warning",
        *tools, *(adapters if named else []),
    ]  # fmt: skip


def _lmdeploy(launch: Launch) -> list[str]:
    dtype = launch.dtype if launch.dtype in ("float16", "bfloat16") else "auto"
    named = [f"{name}={folder}" for name, folder in launch.adapters]
    # Adapters, and log-probabilities where requests ask for them, are the PyTorch backend's.
    adapters = ["--backend", "pytorch", "--adapters", *named] if named else []
    parser = PARSERS[launch.calls].lmdeploy if launch.calls else ""
    # Without it, lmdeploy 0.18 takes a template of its own for names that it knows (model.py, get_chat_template).
    template = ["--chat-template", "hf"] if launch.chat_template else []
    return [
        "lmdeploy", "serve", "api_server", launch.model, "--model-name", SERVED, "--server-name", LOOPBACK,
        "--server-port", str(launch.port), "--device", "cuda", "--dtype", dtype, "--log-level", "WARNING",
        "--disable-fastapi-docs", "--logprobs-mode", "raw_logprobs",
        *template, *(["--tool-call-parser", parser] if parser else []), *adapters,
    ]  # fmt: skip


def _llamacpp(launch: Launch) -> list[str]:
    layers = [] if launch.device == "cpu" else ["--n_gpu_layers", "-1"]
    return [
        "llama_cpp.server", "--model", f"{launch.model}/{GGUF}", "--model_alias", SERVED, "--host", LOOPBACK,
        "--port", str(launch.port), "--n_ctx", str(launch.context), "--verbose", "false", *layers,
    ]  # fmt: skip


class Parsers(msgspec.Struct, frozen=True):
    """What the engines call their reader of one manner of writing calls; empty: it has none."""

    vllm: str
    sglang: str
    lmdeploy: str = ""


PARSERS = {
    "hermes": Parsers("hermes", "hermes", "qwen3"),
    "qwen3_coder": Parsers("qwen3_coder", "qwen3_coder", "qwen3coder"),
    "glm47": Parsers("glm47", "glm47", "glm47"),
    "mistral": Parsers("mistral", "mistral"),
    "llama3": Parsers("llama3_json", "llama3", "llama3"),
    "deepseek_v3": Parsers("deepseek_v3", "deepseekv3"),
    "deepseek_v31": Parsers("deepseek_v31", "deepseekv31"),
    "kimi_k2": Parsers("kimi_k2", "kimi_k2", "kimi-k2"),
    "minimax_m2": Parsers("minimax_m2", "minimax-m2"),
    "internlm": Parsers("internlm", "interns1", "internlm"),
    "lfm2": Parsers("lfm2", "lfm2"),
    "gpt_oss": Parsers("openai", "gpt-oss", "gpt-oss"),
}
"""By the names of `templates.calling`. Read in vLLM 0.32, SGLang 0.5.23 and lmdeploy 0.18."""
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM makes room for (0.32, config/lora.py)."""

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name="transformers", requirement="transformers[serving]", needs_cuda=False, own_interpreter=False,
            health="/health", arguments=_transformers, environ={"PYTHONPATH": str(ROOT)},
            features=frozenset({"adapters", "templates", "embeddings", "tools", "logprobs"}),
        ),
        Engine(
            name="vllm", requirement="vllm==0.32.0", needs_cuda=True, own_interpreter=True, health="/health",
            arguments=_vllm, keyed="--middleware", compiles=True,
            features=frozenset({"adapters", "tools", "logprobs"}),
            loads=frozenset({"gptq", "awq", "fp8", "compressed-tensors", "modelopt", "mxfp4", "quark", "torchao"}),
        ),
        Engine(
            name="sglang", requirement="sglang==0.5.23", needs_cuda=True, own_interpreter=True, health="/health",
            arguments=_sglang, keyed="--api-key", adapter_id=f"{SERVED}:{{adapter}}", compiles=True,
            features=frozenset({"adapters", "tools", "logprobs"}),
            loads=frozenset({
                "bitsandbytes", "gptq", "awq", "fp8", "compressed-tensors", "modelopt", "mxfp4", "quark", "auto-round",
            }),
        ),
        Engine(
            name="lmdeploy", requirement="lmdeploy==0.18.0 torch==2.10.0", needs_cuda=True, own_interpreter=True,
            health="/health", arguments=_lmdeploy, keyed="--api-keys", adds_bos=True, compiles=True,
            features=frozenset({"adapters", "tools", "logprobs"}),
            loads=frozenset({"gptq", "awq", "fp8", "compressed-tensors"}),
            ignores=frozenset({"presence_penalty", "frequency_penalty"}),
        ),
        Engine(
            name="llamacpp", requirement="llama-cpp-python[server]==0.3.36", needs_cuda=False, own_interpreter=True,
            health="/v1/models", arguments=_llamacpp, keyed="--api_key", only="gguf", context=8192,
            ignores=frozenset({
                "n", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format", "repetition_penalty",
            }),
        ),
    )
}  # fmt: skip
PREFERRED = ("vllm", "sglang", "lmdeploy")
"""What `auto` takes on an NVIDIA GPU, the first that is installed and loads the model. By how much of a request each
heeds and how much of it was run here, not by speed, which was measured for none."""


def choose(
    wanted: str, cuda: bool, home: Home, environ: Mapping[str, str] = os.environ, quantization: str = ""
) -> tuple[Engine, str]:
    """The engine to serve with, and why; `quantization` is the model's `quant_method`, empty for none.

    Raises InputError where the engine asked for is not installed, can't run on this machine or can't load the model.
    """
    if wanted == "auto" and quantization != "gguf":
        return _chosen(cuda, home, environ, quantization)
    wanted = "llamacpp" if wanted == "auto" else wanted
    engine = ENGINES[wanted]
    if engine.interpreter(home, environ) is None:
        raise InputError(_("The engine {name} is not installed.").format(name=wanted), _remedy(engine, home))
    if engine.needs_cuda and not cuda:
        raise InputError(
            _("The engine {name} needs an NVIDIA GPU, and none answers here.").format(name=wanted),
            _("Use --engine transformers, or see: doctor"),
        )
    if not _loads(engine, quantization):
        able = [other.name for other in ENGINES.values() if _loads(other, quantization)]
        raise InputError(
            _("The engine {name} does not load models quantised with {method}.").format(
                name=wanted, method=quantization
            )
            if not engine.only
            else _("The engine {name} loads {method} only.").format(name=wanted, method=engine.only),
            _("These do: {names}").format(names=", ".join(able)),
        )
    return engine, _("as asked for")


def _chosen(cuda: bool, home: Home, environ: Mapping[str, str], quantization: str) -> tuple[Engine, str]:
    plain = ENGINES["transformers"]
    if plain.interpreter(home, environ) is None:
        raise InputError(_("The engine {name} is not installed.").format(name=plain.name), _remedy(plain, home))
    if not cuda:
        return plain, _("no NVIDIA GPU, which {names} need").format(names=", ".join(PREFERRED))
    able = [ENGINES[name] for name in PREFERRED if _loads(ENGINES[name], quantization)]
    for engine in able:
        if engine.interpreter(home, environ):
            return engine, _("the first installed of {names}").format(names=", ".join(each.name for each in able))
    if not able:
        return plain, _("no other loads models quantised with {method}").format(method=quantization)
    return plain, _("none of {names} is installed; to install one: {command}").format(
        names=", ".join(engine.name for engine in able), command=preparing(able[0].name, home)
    )


def _loads(engine: Engine, quantization: str) -> bool:
    if engine.only or quantization == "gguf":
        return engine.only == quantization
    return not quantization or engine.loads is None or quantization in engine.loads


def _remedy(engine: Engine, home: Home) -> str:
    if not engine.own_interpreter:
        return _("Install what it needs: {command}").format(
            command=f'{sys.executable} -m pip install "{engine.requirement}"'
        )
    return _("Give it an environment of its own: {command} — or use --engine transformers").format(
        command=preparing(engine.name, home)
    )
