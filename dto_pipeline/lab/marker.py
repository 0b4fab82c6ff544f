"""How a synthetic data set is recognised: a small JSON, written last, that says all it was made from.

Knows folders and that file; knows nothing of what else lies there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dto_pipeline.errors import DtoError


class DemoDataError(DtoError, ValueError):
    """A folder that holds no whole synthetic data set, or another one; says how they differ and what to do."""


def recognise(marker: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Contents of the marker of a data set, if it is whole and the one wanted.

    Args:
        marker: JSON with at least the keys of `identity`.
        identity: settings and versions that determine the data set.

    Returns:
        None if there is no marker: the data set is still to be written.

    Raises:
        DemoDataError: the folder holds a data set of other settings.
    """
    if not marker.exists():
        return None
    facts = json.loads(marker.read_text())
    wanted = json.loads(json.dumps(identity))  # tuples become lists, as in the file
    differing = [
        f"{key}: {facts.get(key)!r} there, {value!r} wanted" for key, value in wanted.items() if facts.get(key) != value
    ]
    if differing:
        found = "; ".join(differing)
        raise DemoDataError(f"{marker.parent} holds another data set ({found}); choose another folder or remove it")
    return facts
