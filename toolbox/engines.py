"""Serving engines: where each one's interpreter lives, what it needs, and the command that starts it."""

import os
import shlex
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import msgspec

from toolbox.config import Home
from toolbox.errors import InputError
from toolbox.i18n import _
from toolbox.ports import LOOPBACK

BAKED = Path("/opt/yichuidingyin/engines")
"""Where the image keeps one environment an engine."""
SERVED, TUNED = "served", "tuned-{number}"
"""What an engine calls the model, and adapters that it keeps apart; clients never see these names."""
FEATURES = frozenset({"adapters", "templates", "embeddings", "tools", "media", "logprobs"})
"""What an engine may have beyond writing: several adapters at once, each in a folder of its own; a chat template and
tokenizer of each adapter's own; /v1/embeddings; tool calls in the answer; pictures; log-probabilities."""
KEY_VARIABLES = ("YCDY_ENGINE_KEY", "VLLM_API_KEY")
"""Where engines look for the key that requests must bring as `Authorization: Bearer KEY`: others on this machine reach
loopback too. Not on the command line, which everybody can read."""

_KEPT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH",
    "CUDA_CACHE_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "XDG_CACHE_HOME",
    "TRITON_CACHE_DIR",
)  # fmt: skip
"""The variables an engine inherits. Everything else stays out: keys, tokens, proxies, this package's PYTHONPATH."""


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


class Engine(msgspec.Struct, kw_only=True, frozen=True):
    """A serving backend with an OpenAI-compatible port of its own."""

    name: Literal["transformers", "lmdeploy"]
    requirement: str
    """What is installed into its environment, as pip is told."""
    needs_cuda: bool
    own_interpreter: bool
    features: frozenset[str] = frozenset()
    """Of `FEATURES`. Without "adapters" it is given one at most, as files beside the base's weights."""
    adds_bos: bool = False
    """It puts a bos_token before what the chat template rendered."""
    health: str
    arguments: Callable[[Launch], list[str]]
    ignores: frozenset[str] = frozenset()
    """Request fields that it accepts and then disregards: the gateway refuses them instead."""

    def interpreter(self, home: Home, environ: Mapping[str, str] = os.environ) -> Path | None:
        """The Python that runs it, or None where it is not installed."""
        if not self.own_interpreter:
            return Path(sys.executable) if all(map(find_spec, ("fastapi", "uvicorn", "openai"))) else None
        return own_python(self.name, home, environ)

    def command(self, python: Path, launch: Launch) -> list[str]:
        """The command line that starts it on a loopback port; never with leave to run a model's own code."""
        return [str(python), "-P", "-m", *self.arguments(launch)]


def own_python(name: str, home: Home, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The Python of the environment made from locks/NAME.txt, for an engine or a tool; None where there is none."""
    named = environ.get("YCDY_ENGINES")
    folders = [*([Path(named)] if named else []), BAKED, home.engines]
    pythons = (folder / name / "bin" / "python" for folder in folders)
    return next((python for python in pythons if os.access(python, os.X_OK)), None)


def preparing(name: str, home: Home) -> str:
    """The command line that makes that environment."""
    folder = home.engines / name
    return f"YCDY_ENV={shlex.quote(str(folder))} YCDY_LOCK={name} bash yichuidingyin.sh --prepare"


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
        "HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def _transformers(launch: Launch) -> list[str]:
    # No --continuous-batching: in transformers 5.23 it samples every request with the first request's parameters.
    return [
        "transformers.cli.transformers", "serve", launch.model, "--host", LOOPBACK, "--port", str(launch.port),
        "--device", launch.device, "--dtype", launch.dtype, "--log-level", "warning",
    ]  # fmt: skip


def _lmdeploy(launch: Launch) -> list[str]:
    dtype = launch.dtype if launch.dtype in ("float16", "bfloat16") else "auto"
    named = [f"{name}={folder}" for name, folder in launch.adapters]
    adapters = ["--backend", "pytorch", "--adapters", *named] if named else []
    # Without it, lmdeploy 0.18 takes a template of its own for names that it knows (model.py, get_chat_template).
    template = ["--chat-template", "hf"] if launch.chat_template else []
    return [
        "lmdeploy", "serve", "api_server", launch.model, "--model-name", SERVED, "--server-name", LOOPBACK,
        "--server-port", str(launch.port), "--device", "cuda", "--dtype", dtype, "--log-level", "WARNING",
        "--disable-fastapi-docs", *template, *adapters,
    ]  # fmt: skip


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name="transformers", requirement="transformers[serving]", needs_cuda=False, own_interpreter=False,
            health="/health", arguments=_transformers,
            ignores=frozenset({"n", "presence_penalty", "logprobs", "top_logprobs", "response_format", "tool_choice"}),
        ),
        Engine(
            name="lmdeploy", requirement="lmdeploy==0.18.0 torch==2.10.0", needs_cuda=True, own_interpreter=True,
            health="/health", arguments=_lmdeploy, adds_bos=True,
            features=frozenset({"adapters", "tools", "logprobs"}),
        ),
    )
}  # fmt: skip


def choose(wanted: str, cuda: bool, home: Home, environ: Mapping[str, str] = os.environ) -> Engine:
    """The engine to serve with; `auto` is lmdeploy on a CUDA GPU where it is installed, else transformers.

    Raises InputError where the engine asked for is not installed or can't run on this machine.
    """
    if wanted == "auto":
        fast = ENGINES["lmdeploy"]
        wanted = "lmdeploy" if cuda and fast.interpreter(home, environ) else "transformers"
    engine = ENGINES[wanted]
    if engine.interpreter(home, environ) is None:
        raise InputError(_("The engine {name} is not installed.").format(name=wanted), _remedy(engine, home))
    if engine.needs_cuda and not cuda:
        raise InputError(
            _("The engine {name} needs an NVIDIA GPU, and none answers here.").format(name=wanted),
            _("Use --engine transformers, or see: doctor"),
        )
    return engine


def _remedy(engine: Engine, home: Home) -> str:
    if not engine.own_interpreter:
        return _("Install what it needs: {command}").format(
            command=f'{sys.executable} -m pip install "{engine.requirement}"'
        )
    return _("Give it an environment of its own: {command} — or use --engine transformers").format(
        command=preparing(engine.name, home)
    )
