"""The engine for processors and Macs: `python -m toolbox.serving.batching FOLDER --port N [--adapter NAME=DIR]…`."""

import argparse
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from toolbox import files, startup
from toolbox.ports import LOOPBACK
from toolbox.runs import KERNELS_KEPT

if TYPE_CHECKING:
    from toolbox.serving.batching.server import Server

FAILED = 70
KERNELS = 256
"""Kernels that oneDNN keeps: one for each shape of a layer and size of a batch (`model.SIZES`), and packed weights
need no memory of their own in each."""


def main(words: list[str]) -> None:
    """Answer until killed; the process ends with status 70 where loading or working fails for good."""
    startup.begin()
    asked = _asked(words)
    os.environ.update(dict.fromkeys(KERNELS_KEPT, str(KERNELS)))
    import uvicorn

    from toolbox.serving.batching.server import Server

    server = Server(asked.model.name, os.environ.pop("YCDY_ENGINE_KEY", ""))
    threading.Thread(target=_work, args=[asked, server], daemon=True).start()
    uvicorn.run(
        server.app, host=LOOPBACK, port=asked.port, log_level="warning", access_log=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=10,
    )  # fmt: skip


def _work(asked: argparse.Namespace, server: "Server") -> None:
    """Load the model and compute, in a thread of its own; whatever ends this ends the process."""
    try:
        if not (files.read_json(asked.model / "config.json") or {}).get("quantization_config"):
            startup.leave_out("bitsandbytes")
        from toolbox.serving.batching import embedding, engine

        dtype = engine.dtype_of(asked.model, asked.device) if asked.dtype == "auto" else asked.dtype
        if embedding.is_one(asked.model):
            server.serve(embedding.Embedder(asked.model, dtype, asked.device))
            startup.end()
            threading.Event().wait()
        loaded = engine.load(asked.model, dict(asked.adapter), dtype, asked.device)
        startup.end()
        server.serve(loaded)
        loaded.scheduler.run()
    except BaseException:  # a thread's end would go unheard, and requests unanswered
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(FAILED)


def _asked(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m toolbox.serving.batching")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapter", type=_named, action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--dtype", choices=["auto", "float32", "float16", "bfloat16"], default="auto")
    parser.add_argument("--device", choices=["cpu", "mps", "cuda"], default="cpu")
    return parser.parse_args(words)


def _named(word: str) -> tuple[str, Path]:
    name, _, folder = word.partition("=")
    return name, Path(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
