"""The menu's head: what this machine has, where things lie."""

from toolbox import __version__, device, files, units
from toolbox.config import Home
from toolbox.i18n import _
from toolbox.ui.terminal import Terminal, plain


def draw(session: Terminal) -> None:
    """Show it in a frame in a terminal, as plain lines without one."""
    machine = device.probe()
    title = _("Yichuidingyin") + f" {__version__}"
    rows = facts(machine, session.home)
    if not session.live:
        session.say("\n".join([title, *(f"  {name}: {value}" for name, value in rows)]))
        return
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    for name, value in rows:
        grid.add_row(Text(name, style="dim", no_wrap=True), Text(plain(value), overflow="fold"))
    session.console.print()
    session.console.print(Panel.fit(grid, title=Text(title, style="bold"), title_align="left", border_style="cyan"))


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
