"""What one launch of a run works on: ranges of shards, subsets, so many images; and which failures it takes up again.

Knows numbers and words only, no file. A selection narrows one launch; the run stays the whole manifest, and what was
not selected stays pending. Counts are images.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dto_pipeline.errors import DtoError
from dto_pipeline.status import ImageStatus, ShardStatus


class SelectionError(DtoError, ValueError):
    """A selection that means nothing for this manifest; the message says what there is."""


@dataclass(frozen=True)
class Selection:
    """What a launch is limited to; the defaults are everything."""

    shards: str = ""  # "3-7,12": numbers and closed ranges
    subsets: tuple[str, ...] = ()  # names of data sets
    limit: int | None = None  # images, rounded to whole shards

    def find_shards(self, count: int, subset: str) -> frozenset[int]:
        """Shards of a manifest of `count` shards of `subset` that are selected (the limit is applied to work later).

        Raises:
            SelectionError: a range that cannot be read or lies outside, or a subset the manifest does not hold.
        """
        for name in self.subsets:
            if name != subset:
                raise SelectionError(f"the manifest holds the subset {subset!r}, not {name!r}; give its own manifest")
        return parse_shards(self.shards, count) if self.shards else frozenset(range(count))

    def take(self, work: Mapping[int, int]) -> list[int]:
        """The first shards of `work` (shard -> images to be done) within the limit; at least one, in order."""
        taken: list[int] = []
        images = 0
        for shard in sorted(work):
            images += work[shard]
            if self.limit is not None and taken and images > self.limit:
                break
            taken.append(shard)
        return taken


EVERYTHING = Selection()


@dataclass(frozen=True)
class Retry:
    """Which failures a launch takes up again; the defaults are none."""

    shards: bool = False  # those that were given up
    images: frozenset[str] = frozenset()  # statuses of images in finished shards

    @classmethod
    def of(cls, wanted: bool, statuses: Iterable[str] = ()) -> Retry:
        """Meaning of ``--retry-failed [--status S,..]``: without statuses everything that failed.

        Raises:
            SelectionError: a word that is not a failure, or statuses without a retry.
        """
        words = [word for word in statuses if word]
        failures = {str(status) for status in ImageStatus if status.is_failure}
        choices = failures | {str(ShardStatus.FAILED)}
        if unknown := sorted(set(words) - choices):
            raise SelectionError(f"{unknown} are no failures; choose from {sorted(choices)} (failed: whole shards)")
        if not wanted:
            if words:
                raise SelectionError("--status names failures to take up again: use it with --retry-failed")
            return cls()
        return cls(not words or ShardStatus.FAILED in words, frozenset(words or failures) & failures)

    def count_images(self, image_status: Mapping[str, int]) -> int:
        """Images to do again in a finished shard with these counts."""
        return sum(count for word, count in image_status.items() if word in self.images)


def parse_shards(text: str, count: int) -> frozenset[int]:
    """Shard numbers of ``3-7,12``, each below `count`.

    Raises:
        SelectionError: not numbers and ranges, or outside the manifest.
    """
    shards: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise SelectionError(f"{part!r} is neither a shard nor a range of shards; write them like 3-7,12")
        start, stop = int(first), int(last) if dash else int(first)
        if start > stop or stop >= count:
            raise SelectionError(f"shards {part.strip()}: the manifest's shards are 0 to {count - 1}, ranges ascend")
        shards.update(range(start, stop + 1))
    return frozenset(shards)
