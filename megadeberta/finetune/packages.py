"""The packages of the extra ``finetune``."""

from importlib.util import find_spec

from megadeberta.errors import ConfigError

_NEEDED = {"sklearn": "scikit-learn", "scipy": "scipy", "accelerate": "accelerate"}


def check_packages() -> None:
    """Refuse to start without what metrics and training loop need.

    Raises:
        ConfigError: names the extra.
    """
    missing = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    if missing:
        raise ConfigError(f"finetune needs {', '.join(missing)}: pip install 'megadeberta[finetune]'")
