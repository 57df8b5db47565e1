"""The small vocabulary of the conversion tests."""

from tests.unit.convert.conftest import spm

__all__ = ["spm"]
