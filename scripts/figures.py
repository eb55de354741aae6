"""Figures that the READMEs state, each with where it comes from: docs/figures.json; `make docs` puts them in.

In a README a figure stands as `<!--NAME-->shown<!--/-->`. What measures writes here: `bench/serve.py --record`,
`bench/train.py --record`, `python scripts/tutorial.py`; counts come from the code.
"""

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import msgspec

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from toolbox import processor, registry  # noqa: E402
from toolbox.interpreters import INSTALLED_BYTES  # noqa: E402

FILE = ROOT / "docs" / "figures.json"
READMES = {"zh": ROOT / "README.md", "en": ROOT / "README.en.md"}
ENGINES = ("vllm", "sglang", "lmdeploy", "llamacpp", "lm-eval-cpu", "evalscope")
"""Environments whose size the READMEs state."""
MARK = re.compile(r"<!--([\w.-]+)-->(.*?)<!--/-->")


class Figure(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A measured number. `digits`: after the point, as shown; a share is shown in per cent."""

    value: float
    unit: str
    source: str
    """A report or a bench of this repository."""
    command: str
    machine: str
    date: str
    commit: str
    digits: int = 0

    @property
    def shown(self) -> str:
        return f"{self.value:.{self.digits}%}" if self.unit == "share" else f"{self.value:,.{self.digits}f}"


def read(path: Path = FILE) -> dict[str, Figure]:
    """All figures by name. Raises msgspec.ValidationError where one lacks its source."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Figure])


def keep(found: Mapping[str, tuple[float, str, int]], source: str, path: Path = FILE) -> None:
    """Write (value, unit, digits) by name, as measured here and now; figures of other names stay."""
    name, _bf16 = processor.describe(Path("/"))
    revision = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    command = " ".join(["python", os.path.relpath(sys.argv[0], ROOT), *sys.argv[1:]])
    made = {
        key: Figure(
            value=value, unit=unit, digits=digits, source=source, command=command,
            machine=f"{name}, {processor.cores(Path('/'))} cores, {processor.simd(Path('/'))}",
            date=time.strftime("%Y-%m-%d"),
            commit=subprocess.run(revision, capture_output=True, text=True, check=True).stdout.strip(),
        )
        for key, (value, unit, digits) in found.items()
    }  # fmt: skip
    write({**(read(path) if path.exists() else {}), **made}, path)


def write(figures: Mapping[str, Figure], path: Path = FILE) -> None:
    data = msgspec.json.encode({name: figures[name] for name in sorted(figures)})
    path.write_bytes(msgspec.json.format(data, indent=1) + b"\n")


def counted() -> dict[str, str]:
    """What is counted in the code itself."""
    models = registry.shipped()
    texts = sum(model.modality == "text" for model in models)
    return {
        "models": f"{len(models):,}",
        "models.text": f"{texts:,}",
        "models.multimodal": f"{len(models) - texts:,}",
        **{f"installed.{name}": f"{INSTALLED_BYTES[name] / 1e9:.1f} GB" for name in ENGINES},
    }


def filled(text: str) -> str:
    """A README with every figure as it is now. Raises KeyError where a mark names none."""
    shown = {**counted(), **{name: figure.shown for name, figure in read().items()}}
    return MARK.sub(lambda mark: f"<!--{mark[1]}-->{shown[mark[1]]}<!--/-->", text)
