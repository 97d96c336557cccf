"""The one check that Python files and compiled part are of one release (R-025)."""

from __future__ import annotations

from . import _core

RELEASE = "0.1.0"
"""The release of these files; a test holds it to that of the crates."""


def check() -> None:
    """Refuses a compiled part of another release, before anything could be read wrongly.

    Raises:
        ImportError: naming both and what to do.
    """
    if _core.__version__ != RELEASE:
        raise ImportError(
            f"echelon {RELEASE} found the compiled part of {_core.__version__} at {_core.__file__}: "
            "two installations are mixed; run `pip install --force-reinstall echelon` (in a checkout: `maturin develop`)"
        )


check()
