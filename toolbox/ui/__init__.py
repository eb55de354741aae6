"""What a person sees and types: the Session that the command line and the menu hand to every verb."""

from toolbox.ui.terminal import Terminal, print_json

__all__ = ["Terminal", "print_json"]
