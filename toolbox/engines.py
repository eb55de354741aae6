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
SERVED, TUNED = "served", "tuned"
"""What an engine calls the model, and an adapter that it keeps apart; clients never see either name."""

_KEPT = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "CUDA_PATH",
    "CUDA_CACHE_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "OMP_NUM_THREADS", "XDG_CACHE_HOME",
    "TRITON_CACHE_DIR",
)  # fmt: skip
"""The variables an engine inherits. Everything else stays out: keys, tokens, proxies, this package's PYTHONPATH."""


class Launch(msgspec.Struct, kw_only=True, frozen=True):
    """What an engine is started for. Folders are named as the engine sees them from its working folder."""

    model: str = SERVED
    adapter: str = ""
    """A folder beside the model's; only for an engine with `adapter_apart`."""
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
    adapter_apart: bool
    """It takes the adapter as a folder of its own; otherwise as files beside the base's weights."""
    health: str
    arguments: Callable[[Launch], list[str]]
    ignores: frozenset[str] = frozenset()
    """Request fields that it accepts and then disregards: the gateway refuses them instead."""

    def interpreter(self, home: Home, environ: Mapping[str, str] = os.environ) -> Path | None:
        """The Python that runs it, or None where it is not installed."""
        if not self.own_interpreter:
            return Path(sys.executable) if all(map(find_spec, ("fastapi", "uvicorn", "openai"))) else None
        named = environ.get("YCDY_ENGINES")
        folders = [*([Path(named)] if named else []), BAKED, home.engines]
        pythons = (folder / self.name / "bin" / "python" for folder in folders)
        return next((python for python in pythons if os.access(python, os.X_OK)), None)

    def command(self, python: Path, launch: Launch) -> list[str]:
        """The command line that starts it on a loopback port; never with leave to run a model's own code."""
        return [str(python), "-P", "-m", *self.arguments(launch)]

    def called(self, launch: Launch) -> str:
        """The model's name in requests to the engine."""
        return TUNED if launch.adapter else launch.model


def environment(cache: Path, device: str, gpu: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The clean environment an engine runs in: offline, quiet, one GPU, and nothing of ours that could leak.

    `cache`: the folder that Hugging Face's libraries may write to. `gpu`: `Device.index`, among the visible.
    """
    kept = {name: environ[name] for name in _KEPT if name in environ}
    visible = environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = visible[gpu].strip() if visible != [""] else str(gpu)
    shown = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": number if device == "cuda" else ""}
    return kept | shown | {
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
    adapter = ["--backend", "pytorch", "--adapters", f"{TUNED}={launch.adapter}"] if launch.adapter else []
    # Without it, lmdeploy 0.18 takes a template of its own for names that it knows (model.py, get_chat_template).
    template = ["--chat-template", "hf"] if launch.chat_template else []
    return [
        "lmdeploy", "serve", "api_server", launch.model, "--model-name", SERVED, "--server-name", LOOPBACK,
        "--server-port", str(launch.port), "--device", "cuda", "--dtype", dtype, "--log-level", "WARNING",
        "--disable-fastapi-docs", *template, *adapter,
    ]  # fmt: skip


ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (
        Engine(
            name="transformers", requirement="transformers[serving]", needs_cuda=False, own_interpreter=False,
            adapter_apart=False, health="/health", arguments=_transformers,
            ignores=frozenset({"n", "presence_penalty", "logprobs", "top_logprobs", "response_format", "tool_choice"}),
        ),
        Engine(
            name="lmdeploy", requirement="lmdeploy==0.18.0 torch==2.10.0", needs_cuda=True, own_interpreter=True,
            adapter_apart=True, health="/health", arguments=_lmdeploy,
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
    folder = home.engines / engine.name
    return _("Give it an environment of its own: {command} — or use --engine transformers").format(
        command=f"YCDY_ENV={shlex.quote(str(folder))} YCDY_LOCK={engine.name} bash yichuidingyin.sh --prepare"
    )
