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
from dataclasses import dataclass, field

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


@dataclass
class Losses:
    """Images and people looked at, and the causes for which some of them could not be used."""

    images: int = 0
    people: int = 0
    image_causes: Counter[str] = field(default_factory=Counter)  # ImageStatus word, or what a shard said -> images
    people_causes: Counter[str] = field(default_factory=Counter)  # PersonStatus word -> people
    examples: dict[str, Receipt] = field(default_factory=dict)  # cause -> the first shard whose rows show it

    def add(self, receipt: Receipt) -> None:
        """Count a finished shard."""
        self.images += receipt.images
        self.people += receipt.persons
        for found, counts, words in (
            (self.image_causes, receipt.image_status, UNUSABLE_IMAGES),
            (self.people_causes, receipt.person_status, UNUSABLE_PEOPLE),
        ):
            for cause in (str(word) for word in words if counts.get(word)):
                found[cause] += counts[cause]
                self.examples.setdefault(cause, receipt)

    @property
    def causes(self) -> list[tuple[str, int]]:
        """Cause and how many were lost for it, the commonest first."""
        return (self.image_causes + self.people_causes).most_common()

    def over(self, share: float, least: int = 0) -> bool:
        """Whether more than a share of the images, or of the people, could not be used; `least`: see `JUDGED_FROM`."""
        parts = ((self.image_causes, self.images), (self.people_causes, self.people))
        return any(lost.total() > share * max(whole, least) for lost, whole in parts)

    def describe(self, share: float) -> str:
        """What was lost, one line a cause with what it advises, and the next step."""
        parts = ((self.image_causes, self.images, "images"), (self.people_causes, self.people, "people"))
        lost = " and ".join(f"{lost.total()} of {whole} {what}" for lost, whole, what in parts if lost)
        lines = [f"  {cause:<16} {count:>9}  {_ADVICE.get(cause, '')}".rstrip() for cause, count in self.causes]
        first = f"{lost} could not be used, more than {share:.3g} of all (run.max_failed_images)"
        return "\n".join([first, *lines, _NEXT])


class FailureBudget:
    """Judges a launch while it works; the driver's loop tells it what became of each shard and asks `complaint`."""

    def __init__(self, share: float, images: Mapping[int, int], repairs: Iterable[int] = (), workers: int = 1) -> None:
        """
        Args:
            share: of images, and of people, that may fail; 1 = all of them, nothing is judged.
            images: of each shard of this launch.
            repairs: shards that were finished before; only their failed images are done again, and are not judged.
        """
        self.losses = Losses()
        self._share, self._images, self._repairs = share, images, frozenset(repairs)
        self._row_limit = max(FAILED_IN_A_ROW, 2 * workers)
        self._row: set[int] = set()  # shards that failed since one was finished
        self._last_error = ""

    def shard_done(self, receipt: Receipt) -> None:
        self._row.clear()
        if receipt.shard not in self._repairs:
            self.losses.add(receipt)

    def shard_charged(self, charge: Charge, error: str) -> None:
        """A shard used up an attempt. Its images are lost once it is given up."""
        self._row.add(charge.shard)
        self._last_error = error
        if charge.given_up and charge.shard not in self._repairs:
            images = self._images.get(charge.shard, 0)
            self.losses.images += images
            self.losses.image_causes[error] += images

    def complaint(self) -> str:
        """Why the launch is to stop, with counts and the next step; "" = it may go on."""
        if self._share >= 1:
            return ""
        if len(self._row) >= self._row_limit:
            row = f"{len(self._row)} shards failed one after the other and none was finished"
            return f"stopped: {row}; the last said: {self._last_error}; {_NEXT}"
        if self.losses.over(self._share, JUDGED_FROM):
            return f"stopped, because in this launch {self.losses.describe(self._share)}"
        return ""


def count_losses(receipts: Iterable[Receipt]) -> Losses:
    """The losses of finished shards."""
    losses = Losses()
    for receipt in receipts:
        losses.add(receipt)
    return losses


def over_budget(losses: Losses, share: float) -> str:
    """`FailureBudget.complaint` for a run that has come to its end; "" = it kept to the share."""
    return losses.describe(share) if share < 1 and losses.over(share) else ""
