"""Where the recorded exchanges of version 1 are. They are not part of the project; tests that need them say so."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path | None:
    """ECHELON_VECTORS, else `shared/vectors` beside the project or one folder above; None when there is none."""
    named = os.environ.get("ECHELON_VECTORS")
    places = [Path(named)] if named else [ROOT / "../shared/vectors", ROOT / "../../shared/vectors"]
    return next((place.resolve() for place in places if place.is_dir()), None)


def load(name: str) -> Any | None:
    """The file `name` of that folder, or None when the folder or the file is not there."""
    place = folder()
    if place is None or not (place / name).is_file():
        return None
    return json.loads((place / name).read_text())


MISSING = "the recorded exchanges of version 1 are not here; set ECHELON_VECTORS to their folder"
"""Why a test that needs them was skipped."""
