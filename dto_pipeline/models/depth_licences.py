"""Under which licence each known depth network is, as data: for messages, help texts and label metadata.

As stated by the models' authors; a CC BY-NC network makes labels that may not be used commercially. Light to import.
"""

from __future__ import annotations

DEMO_MODEL = "demo"  # name of the network shipped with the package
LICENCES = {
    "depth-anything/Depth-Anything-V2-Small-hf": "Apache-2.0",
    "depth-anything/Depth-Anything-V2-Base-hf": "CC BY-NC 4.0",
    "depth-anything/Depth-Anything-V2-Large-hf": "CC BY-NC 4.0",
    "depth-anything/Depth-Anything-V2-Metric-Indoor-Small-hf": "Apache-2.0",
    "depth-anything/Depth-Anything-V2-Metric-Indoor-Base-hf": "CC BY-NC 4.0",
    "depth-anything/Depth-Anything-V2-Metric-Indoor-Large-hf": "CC BY-NC 4.0",
    "depth-anything/Depth-Anything-V2-Metric-Outdoor-Small-hf": "Apache-2.0",
    "depth-anything/Depth-Anything-V2-Metric-Outdoor-Base-hf": "CC BY-NC 4.0",
    "depth-anything/Depth-Anything-V2-Metric-Outdoor-Large-hf": "CC BY-NC 4.0",
    "LiheYoung/depth-anything-small-hf": "Apache-2.0",
    "LiheYoung/depth-anything-base-hf": "Apache-2.0",
    "LiheYoung/depth-anything-large-hf": "Apache-2.0",
    "apple/DepthPro-hf": "Apple Machine Learning Research Model licence (research only)",
    DEMO_MODEL: "Apache-2.0 (trained here on synthetic crowds; for the demo's pictures only)",
}


def describe_licences() -> str:
    """All on one line, for messages."""
    return "Licences: " + "; ".join(licence_lines())


def licence_lines() -> list[str]:
    """One line a licence, with the names of its networks."""
    licences: dict[str, list[str]] = {}
    for name, licence in LICENCES.items():
        licences.setdefault(licence, []).append(name)
    return [f"{licence}: {', '.join(names)}" for licence, names in licences.items()]
