"""What the demo breaks on purpose, one image each, to show that bad input costs one item and is counted.

Knows which images are broken and how; whoever writes the data set does the breaking.
"""

from __future__ import annotations

BREAKAGES = {
    "truncated_image": "the JPEG ends after 40 % of its bytes",
    "missing_image": "the labels name a JPEG that is not there",
    "nan_pose": "the last person's pose holds NaN",
    "wrong_size": "the label's camera belongs to an image 1.5 times as large",
    "empty_mask": "the first person's instance mask has no pixel",
    "zero_disparity": "the depth map is zero everywhere",
}
FEWEST_IMAGES = 12  # smaller data sets are left whole


def plan_breakages(images: int) -> dict[int, str]:
    """Number of the image -> key of `BREAKAGES`, spread evenly; empty below `FEWEST_IMAGES` images."""
    if images < FEWEST_IMAGES:
        return {}
    return {(2 * k + 1) * images // (2 * len(BREAKAGES)): name for k, name in enumerate(BREAKAGES)}
