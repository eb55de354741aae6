"""Which hub to ask first (`--source auto`)."""

import queue
import threading
import time
from collections.abc import Mapping, Sequence

from toolbox.config import Home, Settings
from toolbox.hub.sources import Source

ANSWER_S = 6.0
"""How long a hub may take to answer before another is asked instead."""
HEAD_START_S = 0.5
"""By how much another hub must be quicker than the first in the order, ModelScope, to be asked in its place."""


def ordered(source: str, before: str, settings: Settings, home: Home, environ: Mapping[str, str]) -> list[Source]:
    """The hubs to ask, best first: the one that was named; for `auto` both, in front that which a copy on this machine
    is from (`before`), else that which answers first."""
    from toolbox.hub.huggingface import HuggingFace
    from toolbox.hub.modelscope import ModelScope

    modelscope = ModelScope(environ.get("MODELSCOPE_ENDPOINT") or settings.modelscope_endpoint, environ, home)
    huggingface = HuggingFace(environ.get("HF_ENDPOINT") or settings.huggingface_endpoint)
    if source != "auto":
        return [hub for hub in (modelscope, huggingface) if hub.name == source]
    hubs: list[Source] = [modelscope, huggingface]
    known = [index for index, hub in enumerate(hubs) if hub.name == before]
    first = known[0] if known else quickest([hub.endpoint for hub in hubs])
    return hubs[first:] + hubs[:first]


def quickest(endpoints: Sequence[str], wait_s: float = ANSWER_S, head_start_s: float = HEAD_START_S) -> int:
    """Index of the address that answers first, whatever it answers; 0 in a near tie, or where none does in time."""
    import httpx

    answers: queue.Queue[int | None] = queue.Queue()
    client = httpx.Client(timeout=wait_s)

    def ask(index: int) -> None:
        time.sleep(head_start_s if index else 0)
        try:
            client.head(endpoints[index])
        except (httpx.HTTPError, httpx.InvalidURL):
            answers.put(None)
        else:
            answers.put(index)

    for index in range(len(endpoints)):
        threading.Thread(target=ask, args=(index,), daemon=True).start()
    for _endpoint in endpoints:
        try:
            answer = answers.get(timeout=wait_s + head_start_s)
        except queue.Empty:
            break
        if answer is not None:
            return answer
    return 0
