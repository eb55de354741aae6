"""The layers of docs/architecture.md: every import of every module, deferred ones too, goes down or stays."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "toolbox"

PAGE = ROOT / "docs" / "architecture.md"
MAY_USE = {
    "base": {"base"},
    "things": {"base", "things"},
    "deciding": {"base", "things", "deciding"},
    "verbs": {"base", "things", "deciding", "verbs"},
    "front": {"base", "things", "deciding", "verbs", "front"},
    "work": {"base", "things", "deciding", "work"},
    "job": {"base", "things", "deciding", "work"},
    "face": {"base", "things", "deciding", "verbs", "front", "work", "job", "face"},
}
TORCH_FREE = {"base", "things", "deciding", "verbs", "front"}
HEAVY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors.torch", "tensorboard"}


def layers() -> dict[str, str]:
    """{module: layer}, as the drawing in docs/architecture.md says: `base   errors.py i18n.py …`."""
    found = {"__main__": "front"}
    for line in PAGE.read_text(encoding="utf-8").split("```")[1].splitlines():
        layer, *words = line.split() or [""]
        if layer in MAY_USE:
            modules = (re.match(r"(\w+)(\.py|/)", word) for word in words)
            found |= {module[1]: layer for module in modules if module}
    return found


LAYER_OF = layers()


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str | None:
    """The layer of `toolbox.merging.proof`; the package itself has none."""
    parts = module.split(".")
    return LAYER_OF.get(parts[1]) if len(parts) > 1 else None


@functools.cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import in the file, wherever it stands; `from toolbox import hub` is toolbox.hub."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path).split(".")
            if path.name != "__init__.py":
                package = package[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            submodules = module == "toolbox" or (PACKAGE.parent / Path(*module.split("."))).is_dir()
            yield from ((node.lineno, f"{module}.{alias.name}" if submodules else module) for alias in node.names)


def test_every_module_has_a_layer() -> None:
    homeless = {name_of(path) for path in modules() if path != PACKAGE / "__init__.py" and not layer_of(name_of(path))}
    assert not homeless, f"docs/architecture.md names no layer for {sorted(homeless)}"


def test_imports_only_go_down() -> None:
    upward = [
        f"{path}:{line}: {layer} imports {module} ({target})"
        for path in modules()
        if (layer := layer_of(name_of(path)))
        for line, module in imports(path)
        if module.startswith("toolbox.") and (target := layer_of(module)) and target not in MAY_USE[layer]
    ]
    assert not upward, "\n".join(upward)


def test_nothing_but_the_face_imports_the_job() -> None:
    others = [path for path in modules() if layer_of(name_of(path)) != "face"]
    assert not [path for path in others if "toolbox.job" in {module for _, module in imports(path)}]


def test_nothing_above_the_line_imports_torch() -> None:
    above = [path for path in modules() if layer_of(name_of(path)) in {None, *TORCH_FREE}]
    heavy = [
        f"{path}:{line}: {module}"
        for path in above
        for line, module in imports(path)
        if any(module == name or module.startswith(name + ".") for name in HEAVY)
    ]
    assert not heavy, "\n".join(heavy)


def test_the_architecture_page_names_no_module_that_is_not_there() -> None:
    there = {path.stem for path in PACKAGE.glob("*.py")} | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(LAYER_OF) <= there, sorted(set(LAYER_OF) - there)


def test_all_that_the_front_can_reach_leaves_torch_out() -> None:
    """Really imports every module above the line, together, in a fresh interpreter."""
    names = [name_of(path) for path in modules() if layer_of(name_of(path)) in TORCH_FREE]
    code = (
        "import importlib, sys\n"
        f"for name in {[n for n in names if not n.endswith('__main__')]!r}: importlib.import_module(name)\n"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy', 'modelscope', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
