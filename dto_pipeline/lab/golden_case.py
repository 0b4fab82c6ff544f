"""What became of one recorded reference case; the families' checks return these, the command prints them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class CaseResult:
    """One case compared with its recorded values."""

    family: str  # folder of the case: solver, person, image, rh_metric
    name: str
    kind: str
    failures: tuple[str, ...]  # one sentence each; empty = passed
    errors: dict[str, float]  # worst error by quantity, in the quantity's unit
    limits: dict[str, float] = field(default_factory=dict)  # its tolerance, where the quantity can fail the case
    strict: bool = True  # False: reported, but never a failure of the command

    @property
    def passed(self) -> bool:
        """True where nothing is wrong that counts."""
        return not (self.strict and self.failures)


def check_case(
    family: str, name: str, kind: str, check: Callable[[], CaseResult], reference_error: str | None = None
) -> CaseResult:
    """Run one case; what it raises is its failure, never the end of the command.

    `reference_error`: the reference broke down on this case, so a defined result of ours is all that is asked.
    """
    try:
        result = check()
    except Exception as error:  # any fault of one case must leave the others' results standing
        if reference_error and isinstance(error, KeyError):
            return CaseResult(family, name, kind, (), {})  # nothing was recorded to compare with
        return CaseResult(family, name, kind, (f"raised {type(error).__name__}: {error}",), {})
    return CaseResult(family, name, kind, (), {}) if reference_error else result
