"""Starts an engine that would leave others on this machine in: `python keyed.py OPTION MODULE WORD…`.

OPTION `--middleware` puts `Guard` around all of the engine's routes; any other is given the key as its value. The key
comes from YCDY_ENGINE_KEY and never stands on a command line, which everybody can read.
Standard library only: the engine's own interpreter runs it.
"""

import hmac
import os
import runpy
import sys
from typing import Any

VARIABLE = "YCDY_ENGINE_KEY"
OPEN = "/health"


class Guard:
    """ASGI middleware: whoever lacks the key is told 401, but for the health route.

    vLLM's own key guards only what begins with /v1; /invocations, say, would answer everybody (0.32, run).
    """

    def __init__(self, app: Any) -> None:
        self._app, self._wanted = app, f"Bearer {os.environ[VARIABLE]}".encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        told = dict(scope.get("headers", ())).get(b"authorization", b"")
        if scope["type"] == "lifespan" or scope.get("path") == OPEN or hmac.compare_digest(told, self._wanted):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body"})
        else:
            await send({"type": "websocket.close"})


def main(option: str, module: str, *words: str) -> None:
    """Run `module` as `python -m` would, in this process."""
    sys.modules["keyed"] = sys.modules[__name__]
    value = "keyed.Guard" if option == "--middleware" else os.environ[VARIABLE]
    sys.argv = [module, *words, option, value]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
