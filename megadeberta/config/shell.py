"""What a shell would replace in a path, and Python does not."""

import re


def begins_for_shell(path: str) -> bool:
    """Whether a path begins with the home folder or a variable, as only a shell reads it: ``~/a``, ``$HOME/a``."""
    return re.match(r"~(/|$)|\$(\w+|\{\w+\})(/|$)", path) is not None
