"""The menu: `bash yichuidingyin.sh` without a verb."""

from toolbox.menu.loop import main

__all__ = ["main"]
