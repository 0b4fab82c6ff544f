"""How many failures a run may have: counts per cause, and the sentence that stops it.

A failure is an input that could not be used: an image with an error status, an image none of whose people can be used,
a person whose label is invalid. What the method decides about sound inputs (alone in a group, too tall, too small ...)
is a judgement and never counts; nor does an empty mask, which is what a person hidden by others has.

Two questions, one share (`run.max_failed_images`). On the way: did this launch lose more than the share of what it
looked at? It is asked from `JUDGED_FROM` images or people on, so that chance decides nothing, and only of shards that
were not finished before: a launch after the cause was mended goes on. At the end: did the run lose more than the share?
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dto_pipeline.data.receipts import Receipt
from dto_pipeline.status import ImageStatus, PersonStatus

# Fewer are judged as if they were so many: with a share of 5 %, 20 failures never stop a launch. Of a data set with 3 %
# failures spread at random, 400 images hold more than 20 less than once in a hundred times.
JUDGED_FROM = 400
FAILED_IN_A_ROW = 10  # shards, or twice the workers if that is more, that fail with none finished in between

UNUSABLE_IMAGES = (*(status for status in ImageStatus if status.is_failure), ImageStatus.NO_PEOPLE)
UNUSABLE_PEOPLE = (PersonStatus.INVALID_LABEL,)
_ADVICE = {str(status): status.advice for status in (*UNUSABLE_IMAGES, *UNUSABLE_PEOPLE)}
_NEXT = (
    "mend the cause and start again with --retry-failed: what is finished stays; if it is to be so, "
    "--set run.max_failed_images=1 lets it through"
)


@dataclass(frozen=True)
class Charge:
    """An attempt that a shard has used up."""

    shard: int
    attempts: int  # so far
    given_up: bool  # True: it is quarantined, not queued again


class FailureBudget:
    """Counts what could not be used and for which causes.

    The driver's loop tells it what became of each shard and asks for a `complaint`; the summary adds all finished
    shards and asks for the `verdict`.
    """

    def __init__(self, share: float, images: Mapping[int, int], repairs: Iterable[int] = (), workers: int = 1) -> None:
        """
        Args:
            share: of images, and of people, that may fail; 1 = all of them, nothing is judged.
            images: of each shard of this launch.
            repairs: shards that were finished before; only their failed images are done again, and are not judged.
        """
        self.examples: dict[str, Receipt] = {}  # cause -> the first shard whose rows show it
        self._share, self._shard_images, self._repairs = share, images, frozenset(repairs)
        self._images = self._people = 0  # looked at
        self._image_causes: Counter[str] = Counter()  # ImageStatus word, or what a shard said -> images
        self._people_causes: Counter[str] = Counter()  # PersonStatus word -> people
        self._row_limit = max(FAILED_IN_A_ROW, 2 * workers)
        self._row: set[int] = set()  # shards that failed since one was finished
        self._last_error = ""

    def shard_done(self, receipt: Receipt) -> None:
        self._row.clear()
        if receipt.shard in self._repairs:
            return
        self._images += receipt.images
        self._people += receipt.persons
        for found, counts, words in (
            (self._image_causes, receipt.image_status, UNUSABLE_IMAGES),
            (self._people_causes, receipt.person_status, UNUSABLE_PEOPLE),
        ):
            for cause in (str(word) for word in words if counts.get(word)):
                found[cause] += counts[cause]
                self.examples.setdefault(cause, receipt)

    def shard_charged(self, charge: Charge, error: str) -> None:
        """A shard used up an attempt. Its images are lost once it is given up."""
        self._row.add(charge.shard)
        self._last_error = error
        if charge.given_up and charge.shard not in self._repairs:
            images = self._shard_images.get(charge.shard, 0)
            self._images += images
            self._image_causes[error] += images

    @property
    def causes(self) -> list[tuple[str, int]]:
        """Cause and how many were lost for it, the commonest first."""
        return (self._image_causes + self._people_causes).most_common()

    def complaint(self) -> str:
        """Why the launch is to stop, with counts and the next step; "" = it may go on."""
        if self._share < 1 and len(self._row) >= self._row_limit:
            row = f"{len(self._row)} shards failed one after the other and none was finished"
            return f"stopped: {row}; the last said: {self._last_error}; {_NEXT}"
        lost = self.verdict(JUDGED_FROM)
        return lost and f"stopped, because in this launch {lost}"

    def verdict(self, least: int = 0) -> str:
        """What was lost, one line a cause with what it advises, and the next step; "" = not more than the share.

        `least`: see `JUDGED_FROM`.
        """
        parts = ((self._image_causes, self._images, "images"), (self._people_causes, self._people, "people"))
        if self._share >= 1 or not any(lost.total() > self._share * max(whole, least) for lost, whole, _ in parts):
            return ""
        told = " and ".join(f"{lost.total()} of {whole} {what}" for lost, whole, what in parts if lost)
        lines = [f"  {cause:<16} {count:>9}  {_ADVICE.get(cause, '')}".rstrip() for cause, count in self.causes]
        first = f"{told} could not be used, more than {self._share:.3g} of all (run.max_failed_images)"
        return "\n".join([first, *lines, _NEXT])
