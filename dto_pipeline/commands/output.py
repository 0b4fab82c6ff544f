"""What several verbs print, as a table or as JSON where `--json` asks for it, and where they may write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from dto_pipeline.errors import DtoError


class Report(Protocol):
    """What a verb found."""

    def to_json(self) -> Any:
        """Everything, for programs."""
        ...

    def as_table(self) -> str:
        """The same for people."""
        ...


def print_report(report: Report, as_json: bool) -> None:
    """Print a report in one of its two forms."""
    print(json.dumps(report.to_json(), indent=1) if as_json else report.as_table())


def local_place(text: str) -> Path:
    """`-o` of a verb that writes to local disks only; raises DtoError for a URI of anything else."""
    from dto_pipeline.data.storage import as_location

    place = as_location(text)
    if not isinstance(place, Path):
        raise DtoError(f"{text} is a URI; this is written to a local folder, name one (-o)")
    return place


def lasting_place(text: str) -> str:
    """`-o` of a verb that writes to any store but this process's memory, which nobody could read afterwards."""
    if text.startswith("memory://"):
        raise DtoError(f"{text} lies in the memory of this process and ends with it; name a folder or a bucket (-o)")
    return text


def show_progress(done: int, images: int) -> None:
    """A line on the terminal that says how many images are made."""
    print(f"\r   {done} of {images} images", end="\n" if done == images else "", flush=True)
