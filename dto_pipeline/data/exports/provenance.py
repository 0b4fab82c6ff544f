"""What made the labels of a run, as the footer of its files tells: solver, depth, body, configuration. Mixing is told.

Knows the footer's keys; opens one file a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dto_pipeline.data.exports.inputs import ExportError, RunLabels, read_footer
from dto_pipeline.reading import parse_json

FACTS = ("solver", "depth", "body", "config_hash")


def describe_making(footer: Mapping[str, str]) -> dict[str, str]:
    """Solver, depth network (or files), body and config hash of a label file; "unknown" where its footer is silent."""
    try:
        config = parse_json(footer.get("config", "{}"))
    except ValueError:
        config = {}
    sections = (
        {name: section for name, section in config.items() if isinstance(section, dict)}
        if isinstance(config, dict)
        else {}
    )
    options = {section: sections.get(section, {}) for section in ("solver", "depth", "body")}
    digest = footer.get("body_sha256", "")
    body = str(options["body"].get("model_path", "")) or ("body" if digest else "unknown")  # since 0.4 no place is told
    return {
        "solver": str(options["solver"].get("mode", "unknown")),
        "depth": _depth(options["depth"], footer),
        "body": f"{body.rstrip('/').rpartition('/')[2]} (sha256 {digest[:16]})" if digest else body,
        "config_hash": footer.get("config_hash", "unknown"),
    }


def _depth(options: Mapping[str, Any], footer: Mapping[str, str]) -> str:
    """The network by its name and what pins it: footers tell both, their config (since 0.4) no place it lay at."""
    if options.get("source") != "model":
        return f"maps from {options['source']} ({options.get('kind', '')})" if "source" in options else "unknown"
    name = footer.get("depth_model") or options.get("model") or "unknown"
    pin = footer.get("depth_revision") or options.get("revision") or footer.get("depth_sha256", "")[:16]
    return f"{name} at {pin}" if pin else str(name)


def check_alike(runs: Sequence[RunLabels]) -> None:
    """Refuse runs that were not made alike.

    Raises:
        ExportError: two runs differ in one of `FACTS`; the message names both and the fact.
    """
    first: tuple[RunLabels, dict[str, str]] | None = None
    for run in runs:
        if not run.files:
            continue
        found = describe_making(read_footer(run))
        if first is None:
            first = run, found
        apart = [fact for fact in FACTS if found[fact] != first[1][fact]]
        if apart:
            told = "; ".join(f"{fact}: {_short(first[1][fact])} and {_short(found[fact])}" for fact in apart)
            raise ExportError(
                f"{first[0].name} and {run.name} were not made alike ({told}); export them apart, or say --mixed"
            )


def _short(text: str) -> str:
    return text if len(text) < 64 else text[:16]
