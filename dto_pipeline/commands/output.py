"""What several verbs print: a report as a table, or as JSON where `--json` asks for it."""

from __future__ import annotations

import json
from typing import Any, Protocol


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
