"""The menu's head: what this machine has, where things lie."""

import shutil
from collections.abc import Sequence

from toolbox import __version__, device, files, units
from toolbox.config import Home
from toolbox.i18n import _
from toolbox.ui.terminal import Terminal
from toolbox.ui.text import cells, pad, wrap


def draw(session: Terminal) -> None:
    """Show it in a frame in a terminal, as plain lines without one."""
    title = _("Yichuidingyin") + f" {__version__}"
    rows = facts(device.probe(), session.home)
    if session.live:
        session.say("\n" + "\n".join(_framed(title, rows, shutil.get_terminal_size().columns)))
    else:
        session.say(
            "\n".join([title, *(_("  {name}: {value}").format(name=name, value=value) for name, value in rows)])
        )


def _framed(title: str, rows: Sequence[tuple[str, str]], width: int) -> list[str]:
    """The rows in a frame no wider than `width`; without rich, which costs 50 ms."""
    names = max(cells(name) for name, _value in rows) + 2
    inside = min(max(names + cells(value) for _name, value in rows), max(width - 4, names + 10))
    lines = [pad("" if index else name, names) + part for name, value in rows
             for index, part in enumerate(wrap(value, inside - names))]  # fmt: skip
    top = f"╭─ {title} " + "─" * (inside - cells(title) - 1) + "╮"
    return [top, *(f"│ {pad(line, inside)} │" for line in lines), "╰" + "─" * (inside + 2) + "╯"]


def facts(machine: device.Machine, home: Home) -> list[tuple[str, str]]:
    """(name, value) of each line."""
    rows = [(_KINDS[found.kind](), _device(found)) for found in machine.devices]
    if machine.reason:
        rows.append((_("No GPU"), machine.reason))
    rows.append((_("Disk"), _("{free} free").format(free=units.size(files.free_bytes(home.path)))))
    return [*rows, (_("Data"), str(home.path))]


_KINDS = {"cuda": lambda: _("GPU"), "mps": lambda: _("Apple chip"), "cpu": lambda: _("Processor")}


def _device(found: device.Device) -> str:
    memory = _("{free} of {total} free").format(
        free=units.size(found.memory_free_bytes), total=units.size(found.memory_total_bytes)
    )
    return f"{found.name} · {memory}"
