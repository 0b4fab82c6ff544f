"""`dto verify`: receipts against label files, rows against the manifest, labels against what a fit may do.

Reads everything, writes nothing; what could not be checked is listed. Broken is a finished shard that does not hold;
doubtful is a person in a sound row whom the same run would give again (a check with a next step). Exit codes as of
`dto run`: 0 every shard is done and holds, doubtful people or not; 1 something is broken, or shards were given up; 3
the rest is pending.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.invariants import (
    MANIFEST_PEOPLE,
    Check,
    check_heights,
    check_labels,
    check_reprojection,
    check_undo,
    limits_of,
)
from dto_pipeline.data.label_files import LabelColumns, flatten_table
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.manifest import Manifest, ManifestError
from dto_pipeline.data.receipts import LABELS, parse_name, shard_name
from dto_pipeline.data.storage import base_name
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.run.folder import READABLE, SAME_COUNTS, SAME_HASH, check_label_file, find_strays
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.report import EXIT_DONE, EXIT_MISSING, EXIT_SELECTED
from dto_pipeline.view.run_files import RunFiles, load_run_body, open_run_files

RECEIPTS, FOOTER = "every receipt holds", "every footer is of this run"
FOLDER, ROWS = "labels/ holds every shard once", "rows are the manifest's"
_KEPT = 200  # offences remembered per rule; all are counted


@dataclass
class Rule:
    """How often one rule was applied and broken over the whole run."""

    name: str
    checked: int = 0
    broken: int = 0
    offences: list[str] = field(default_factory=list)  # the first ones: where, found, expected
    next_step: str = ""  # of a judgement

    def offend(self, text: str) -> None:
        self.broken += 1
        if len(self.offences) < _KEPT:
            self.offences.append(text)


@dataclass
class Verdict:
    """What was checked, what falls short, what could not be checked."""

    run_dir: str
    images: int = 0
    persons: int = 0
    done: int = 0  # shards whose receipt holds; likewise below
    pending: dict[int, str] = field(default_factory=dict)  # shards without a receipt -> what `dto run` will do
    given_up: dict[int, str] = field(default_factory=dict)  # shards that failed for good -> last error
    damaged: list[int] = field(default_factory=list)  # shards whose label file does not match their receipt
    rules: dict[str, Rule] = field(default_factory=dict)
    judgements: dict[str, Rule] = field(default_factory=dict)  # people who are doubtful; `broken` counts them
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing is broken; the run may be unfinished all the same."""
        return all(rule.broken == 0 for rule in self.rules.values())

    @property
    def doubtful(self) -> int:
        """Doubtful people in sound rows, counted once per judgement."""
        return sum(rule.broken for rule in self.judgements.values())

    @property
    def exit_code(self) -> int:
        if not self.passed or self.given_up:
            return EXIT_MISSING
        return EXIT_SELECTED if self.pending else EXIT_DONE

    def rule(self, name: str) -> Rule:
        return self.rules.setdefault(name, Rule(name))

    def check(self, name: str, offence: str, shard: int | None = None) -> None:
        """Count one application of a rule; offence: "" = it holds; shard: its label file is damaged otherwise."""
        self.rule(name).checked += 1
        if offence:
            self.rule(name).offend(offence)
            self.damaged += [] if shard is None or shard in self.damaged else [shard]

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        derived = {"passed": self.passed, "doubtful": self.doubtful, "exit_code": self.exit_code}
        return {**dataclasses.asdict(self), **derived}

    def as_table(self, examples: int = 5) -> str:
        """Text for a terminal: one line per rule, then the first offences of each broken one."""
        rules = [*self.rules.values(), *self.judgements.values()]
        width = max(len(rule.name) for rule in rules)
        lines = [
            f"{self.run_dir}: {self.images} images, {self.persons} persons",
            f"  shards: {self.done} done, {len(self.given_up)} given up, {len(self.pending)} pending, "
            f"{self.rule(RECEIPTS).broken} broken",
        ]
        for rule in rules:
            found = f"{rule.broken} {'doubtful' if rule.next_step else 'BROKEN'}" if rule.broken else "ok"
            lines.append(f"  {rule.name:<{width}}  {rule.checked:>9} checked  {found}")
            lines += [f"      {offence}" for offence in rule.offences[:examples]]
            if rule.broken > examples:
                lines.append(f"      ... and {rule.broken - examples} more; --limit N or --json show them")
            lines += [f"      next: {rule.next_step}"] if rule.broken and rule.next_step else []
        for word, shards in (("given up", self.given_up), ("pending", self.pending)):
            lines += [f"  {word}: {shard_name(shard)}: {text}" for shard, text in list(shards.items())[:examples]]
            lines += [f"  {word}: ... and {len(shards) - examples} more"] if len(shards) > examples else []
        lines += [f"  not checked: {text}" for text in self.unchecked]
        end = "everything holds"
        if self.given_up or self.pending:
            end = f"what is done holds; {len(self.given_up)} shards were given up, {len(self.pending)} are pending"
        if self.doubtful:
            end += f"; {self.doubtful} people are doubtful, which running again will not change"
        return "\n".join([*lines, end if self.passed else "some of it does not hold"])


def verify_run(run_dir: str | Path, manifest: str | Path | None = None, body_path: str | Path | None = None) -> Verdict:
    """Check a run.

    manifest, body_path: where those of the run lie now; None = where they were.

    Raises:
        RunDirectoryError: the folder is not a run.
        ManifestError: the manifest that was named is another one or cannot be read.
    """
    run = open_run_files(run_dir, manifest)
    verdict = Verdict(str(run_dir))
    if run.manifest is None:
        verdict.unchecked.append(f"rows against the manifest: {run.manifest_problem}")
    body = None
    try:
        body = load_run_body(run, body_path)
    except (BodyModelError, LabelsError) as error:
        verdict.unchecked.append(f"heights and joints: {error}; name the body model with --body")
    _check_receipts(run, verdict)
    _check_folder(run, verdict)
    verdict.rule(FOOTER)
    identity = run.identity  # every label file of the run says in its footer what it was made from
    wanted = {"config_hash": identity.config_hash, "manifest_fingerprint": identity.manifest_fingerprint}
    wanted |= {"body_sha256": identity.body_sha256} if identity.body_sha256 else {}
    recorded = {"versions": identity.versions, "inputs": identity.inputs}
    wanted |= {name: json.dumps(value, sort_keys=True) for name, value in recorded.items() if value}
    seen = Counter[str]()
    for shard in run.shards:
        columns = _check_file(run, shard, wanted, verdict)
        if columns is not None:
            seen.update(columns.images["image_id"].tolist())
            _check_rows(run, shard, columns, body, verdict)
    verdict.rule("every image has one row")
    for image, count in seen.items():
        verdict.check("every image has one row", f"{image}: {count} rows" if count > 1 else "")
    return verdict


def _check_receipts(run: RunFiles, verdict: Verdict) -> None:
    """Sort the shards into done, broken (a receipt that does not hold), given up and pending."""
    scan = run.scan
    verdict.done = verdict.rule(RECEIPTS).checked = len(scan.done)
    for shard, reason in sorted(scan.void.items()):
        verdict.check(RECEIPTS, f"{shard_name(shard)}: {reason}; `dto run` does it again")
    for shard in sorted({*range(run.identity.shards)} - scan.done.keys() - scan.void.keys()):
        failure = scan.failures.get(shard)
        if failure is not None and failure.given_up:
            verdict.given_up[shard] = f"{failure.error}; `dto run --retry-failed` does it again"
        elif shard in scan.orphans:
            verdict.pending[shard] = "its labels lie there without a receipt; `dto run` adopts them if they are whole"
        else:
            verdict.pending[shard] = "no receipt; `dto run` does it" + (f"; tried: {failure.error}" if failure else "")


def _check_folder(run: RunFiles, verdict: Verdict) -> None:
    """A reader of all of labels/ that knows no receipts must get every image once."""
    holder = read_holder(run.directory.root)
    if holder is not None and holder.state != "gone":
        verdict.unchecked.append(f"{FOLDER}: {holder.describe()} is at work on it")
        return
    scan, strays = run.scan, find_strays(run.directory, run.identity)
    names = {name for name in run.directory.store.entries(LABELS) if name[0] not in "._"} | {
        *strays
    }  # readers skip names with a dot or underscore
    counting = {base_name(path) for path in scan.files.values()}
    verdict.rule(FOLDER)
    for name in sorted(names):
        place, offence = parse_name(name), ""
        if name not in counting and (place is None or name in strays):
            offence = f"{name}: it is no label file of this run; move it elsewhere"
        elif name not in counting and place is not None and f"{LABELS}/{name}" in scan.surplus:
            other = base_name(scan.files[place[0]])
            offence = f"{name}: {other} counts, so its images are there twice; `dto run` removes it"
        verdict.check(FOLDER, offence)


def _check_file(run: RunFiles, shard: int, wanted: dict[str, str], verdict: Verdict) -> LabelColumns | None:
    """Check a file against its receipt and the footer it should have; the file's columns if it can be read."""
    name = base_name(run.label_file(shard))
    table, footer, wrong = check_label_file(run.directory, shard, run.scan.done[shard])
    for rule in (SAME_HASH, READABLE, *((SAME_COUNTS,) if table is not None else ())):
        advice = "`dto run --recheck` does the shard again"
        verdict.check(rule, f"{name}: {wrong[rule]}; {advice}" if rule in wrong else "", shard)
    if table is None:
        return None
    if "body_sha256" in footer:
        wanted.setdefault("body_sha256", footer["body_sha256"])  # run.json of 0.3.0 has none: the first file's
    other = [f"{key} {footer.get(key)}, expected {value}" for key, value in wanted.items() if footer.get(key) != value]
    advice = "delete its receipt, then `dto run` makes it again"
    verdict.check(FOOTER, f"{name}: {'; '.join(other)}; {advice}" if other else "")
    columns = flatten_table(table)
    verdict.images += columns.num_images
    verdict.persons += columns.num_people
    return columns


def _check_rows(run: RunFiles, shard: int, columns: LabelColumns, body: BodyModel | None, verdict: Verdict) -> None:
    checks = check_labels(columns, limits_of(run.identity.config))
    if body is not None:
        checks += [check_heights(columns, body), check_reprojection(columns, body)]
    if run.manifest is not None:
        checks += _check_manifest_rows(run.manifest, shard, columns, verdict.rule(ROWS))
    starts, keys = columns.starts, columns.images["image_id"]
    for check in checks:
        group = verdict.judgements if check.next_step else verdict.rules
        rule = group.setdefault(check.name, Rule(check.name, next_step=check.next_step))
        rule.checked += int(check.applies.sum())
        for index in np.flatnonzero(check.broken).tolist():
            row = int(columns.owner[index]) if check.of_people else index
            person = f", person {index - int(starts[row])}" if check.of_people else ""
            found = check.found[index]
            shown = f"{found:.4g}" if isinstance(found, float | np.floating) else str(found)
            place = f"{shard_name(shard)} row {row}, {keys[row]}{person}"
            rule.offend(f"{place}: {shown}; expected {check.expected}")


def _check_manifest_rows(manifest: Manifest, shard: int, columns: LabelColumns, rule: Rule) -> list[Check]:
    """Same images in the same order with the same number of people, then the undo checks."""
    try:
        given = flatten_table(manifest.read_shard(shard), MANIFEST_PEOPLE)
    except ManifestError as error:
        rule.offend(str(error))
        return []
    rule.checked += given.num_images
    wanted, found, name = given.images["image_id"], columns.images["image_id"], shard_name(shard)
    if np.array_equal(wanted, found):
        different = np.flatnonzero(np.diff(given.starts) != np.diff(columns.starts))
        for row in different:
            rule.offend(f"{name} row {row}, {found[row]}: another number of people than the manifest")
        return [] if different.size else check_undo(columns, given)
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    offences = [f"image {image} is missing" for image in missing]
    offences += [f"image {image} is not in the manifest" for image in extra]
    for text in offences or ["the manifest's images in another order, or one of them twice"]:
        rule.offend(f"{name}: {text}")
    return []
