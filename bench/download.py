"""Downloads from a hub on loopback, in a process of its own, over both hubs' protocols: `python bench/download.py`.

    python bench/download.py [speed] [limit] [kills] [small] [--gigabytes 1] [--kills 200] [--rounds 3] [--folder DIR]

speed  `yichuidingyin download` of one file beside `curl | sha256sum` of the same file, in turn. The command's time
       counts Python's start, the listing, the hash, the flush to the disk and the manifest; curl's, nothing of these.
limit  The hub gives each connection so many bytes a second: the command beside `snapshot_download` of the hub's SDK.
kills  The downloading process is killed at a random offset and another goes on; every result is hashed, and the bytes
       that the hub sent are counted.
small  Many small files: the command beside the SDKs.

Each line is a JSON object. The folder is best on a disk in memory (the default where there is one): what is measured is
the program, and curl's pipe writes to no disk.
"""

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from loopback_hub import LoopbackHub  # noqa: E402

ID, FILE = "bench/model", "model.safetensors"
SOURCES = ("modelscope", "huggingface")
MEMORY = Path("/dev/shm")
SDK = {
    source: f"import sys; from {package} import snapshot_download as get; get(sys.argv[1], cache_dir=sys.argv[2])"
    for source, package in (("modelscope", "modelscope"), ("huggingface", "huggingface_hub"))
}
LIMIT = 16e6
"""Bytes a second of each connection."""


class Hub:
    """The hub's process: what it holds, how fast it sends, and how much it sent."""

    def __init__(self) -> None:
        self._pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        self.url: str = self._pipe.recv()

    def ask(self, *words: Any) -> Any:
        self._pipe.send(words)
        return self._pipe.recv()


def _serve(pipe: Connection) -> None:
    """Answer `hold SIZE…`, `rate BYTES_PER_S` and `sent` until the pipe ends."""
    with LoopbackHub(piece=1 << 20) as hub:
        pipe.send(hub.url)
        while True:
            try:
                word, *values = pipe.recv()
            except EOFError:
                return
            if word == "hold":
                names = [FILE] if len(values) == 1 else [f"{number}.json" for number in range(len(values))]
                files = {
                    name: np.random.default_rng(size).bytes(size) for name, size in zip(names, values, strict=True)
                }
                hub.add(ID, files)
                pipe.send(hashlib.sha256(files[names[0]]).hexdigest())
            elif word == "rate":
                hub.rate, hub.piece = values[0], 1 << 16 if values[0] else 1 << 20
                pipe.send(None)
            else:
                pipe.send(hub.sent)


@contextmanager
def home(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=folder) as path:
        yield Path(path)


def environ(hub: Hub) -> dict[str, str]:
    endpoints = {"MODELSCOPE_ENDPOINT": hub.url, "MODELSCOPE_DOMAIN": hub.url, "HF_ENDPOINT": hub.url}
    plain = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**plain, **endpoints, "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, CPU) seconds of `work`, whose processes are children of this one."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    work()
    after, wall_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def ours(hub: Hub, source: str, folder: Path) -> None:
    words = [sys.executable, "-P", "-m", "toolbox", "download", ID, "--source", source, "--home", str(folder)]
    subprocess.run(words, env=environ(hub), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def theirs(hub: Hub, source: str, folder: Path) -> None:
    words = [sys.executable, "-c", SDK[source], ID, str(folder)]
    cache = {"HF_HOME": str(folder), "MODELSCOPE_CACHE": str(folder)}
    told = subprocess.run(words, env={**environ(hub), **cache}, capture_output=True, text=True)
    if told.returncode:
        raise SystemExit(told.stderr[-2000:])


def curl(hub: Hub, expected: str) -> None:
    """`curl URL | sha256sum`."""
    url = f"{hub.url}/api/v1/models/{ID}/repo?Revision=master&FilePath={FILE}"
    with subprocess.Popen(["curl", "-s", "--noproxy", "*", url], stdout=subprocess.PIPE) as sending:
        told = subprocess.run(["sha256sum"], stdin=sending.stdout, capture_output=True, text=True, check=True)
    assert told.stdout.split()[0] == expected


def compare(contest: dict[str, Callable[[Path], object]], rounds: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Median (wall, CPU) seconds of each, taken in turn."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contest}
    for _round in range(rounds):
        for name, work in contest.items():
            with home(folder) as path:
                taken[name].append(timed(lambda work=work, path=path: work(path)))
    return {
        name: (statistics.median(wall for wall, _ in times), statistics.median(cpu for _, cpu in times))
        for name, times in taken.items()
    }


def show(measure: str, **facts: Any) -> None:
    print(json.dumps({"measure": measure, **facts}), flush=True)


def speed(hub: Hub, options: argparse.Namespace) -> None:
    size = int(options.gigabytes * 1e9)
    expected = hub.ask("hold", size)
    hub.ask("rate", 0)
    contest: dict[str, Callable[[Path], object]] = {"curl": lambda path: curl(hub, expected)}
    contest |= {source: lambda path, source=source: ours(hub, source, path) for source in SOURCES}
    with home(options.folder) as path:
        contest[SOURCES[0]](path)  # the hub hashes its file once, for the listing
    found = compare(contest, options.rounds, options.folder)
    for name, (wall_s, cpu_s) in found.items():
        ratio = round(found["curl"][0] / wall_s, 2)
        show("speed", of=name, bytes=size, wall_s=round(wall_s, 2), cpu_s=round(cpu_s, 2), of_curls_speed=ratio)


def limit(hub: Hub, options: argparse.Namespace) -> None:
    hub.ask("hold", 256_000_000)
    hub.ask("rate", LIMIT)
    against_the_sdks("limit", hub, options, bytes=256_000_000, per_connection=LIMIT)


def small(hub: Hub, options: argparse.Namespace) -> None:
    hub.ask("hold", *(random.Random(number).randrange(100, 20_000) for number in range(1000)))
    hub.ask("rate", 0)
    against_the_sdks("small", hub, options, files=1000)


def against_the_sdks(measure: str, hub: Hub, options: argparse.Namespace, **facts: Any) -> None:
    for source in SOURCES:
        contest = {
            "ours": lambda path, source=source: ours(hub, source, path),
            "sdk": lambda path, source=source: theirs(hub, source, path),
        }
        found = compare(contest, options.rounds, options.folder)
        times = {name: round(wall_s, 2) for name, (wall_s, _) in found.items()}
        cpu = {f"{name}_cpu_s": round(cpu_s, 2) for name, (_, cpu_s) in found.items()}
        show(measure, source=source, **facts, **times, times=round(found["sdk"][0] / found["ours"][0], 2), **cpu)


def kills(hub: Hub, options: argparse.Namespace) -> None:
    """The killed process is a fork that calls what the command calls, so that 200 of them take minutes."""
    size = 32_000_000
    expected = hub.ask("hold", size)
    hub.ask("rate", 8e6)
    dice = random.Random(5)
    for module in ("httpx", "huggingface_hub.hf_api", "modelscope_hub"):
        importlib.import_module(module)  # once here, not in each of 400 forks
    from toolbox.config import Home, Settings
    from toolbox.hub import fetching, store

    overheads, right, cut = [], 0, 0
    for number in range(options.kills):
        with home(options.folder) as path:
            settings = Settings(modelscope_endpoint=hub.url, huggingface_endpoint=hub.url)
            place, source = Home(path), SOURCES[number % 2]
            request = fetching.Request(id=ID, home=place, settings=settings, source=source)
            before = hub.ask("sent")
            child = forked(lambda request=request: fetching.fetch(request))
            goal = before + dice.randrange(size)
            while hub.ask("sent") < goal and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                time.sleep(0.005)
            os.kill(child, signal.SIGKILL)
            cut += os.waitpid(child, 0)[1] == signal.SIGKILL
            os.waitpid(forked(lambda request=request: fetching.fetch(request)), 0)
            with (store.folder(place, "model", ID) / FILE).open("rb") as file:
                right += hashlib.file_digest(file, "sha256").hexdigest() == expected
            overheads.append((hub.ask("sent") - before) / size - 1)
    show(
        "kills", kills=cut, of=options.kills, right_hashes=right, bytes=size,
        sent_twice_mean=round(statistics.mean(overheads), 3), sent_twice_most=round(max(overheads), 3),
        fetched_twice_as_a_whole=sum(overhead >= 1 for overhead in overheads),
    )  # fmt: skip
    assert right == options.kills


def forked(work: Callable[[], object]) -> int:
    if child := os.fork():
        return child
    try:
        work()
    finally:
        os._exit(0)


MEASURES = {"speed": speed, "limit": limit, "kills": kills, "small": small}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", choices=[[], *MEASURES], default=[])
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=MEMORY if MEMORY.is_dir() else Path(tempfile.gettempdir()))
    options = parser.parse_args(words)
    hub = Hub()
    for name in options.measures or list(MEASURES):
        MEASURES[name](hub, options)
    hub.process.terminate()


if __name__ == "__main__":
    main()
