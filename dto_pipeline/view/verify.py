"""`dto verify`: receipts against label files, rows against the manifest, labels against what a fit may do.

Reads everything, writes nothing, and lists what could not be checked. A finished shard that fails a check is broken. A
person in an undamaged row who fails a check is doubtful: the same run would give the same person again. Exit codes as
of `dto run`: 0 every shard is done and passes, with doubtful people or not; 1 something is broken, or shards were given
up; 3 the rest is pending.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dto_pipeline.data.invariants import MANIFEST_PEOPLE, RowChecks, Rule
from dto_pipeline.data.label_files import LabelColumns, flatten_table
from dto_pipeline.data.labels import LabelsError
from dto_pipeline.data.manifest import ManifestError
from dto_pipeline.data.receipts import LABELS, parse_name, shard_name
from dto_pipeline.data.storage import base_name, exists
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.run.folder import check_label_file, find_strays, list_generations, scan_run
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.report import EXIT_DONE, EXIT_MISSING, EXIT_SELECTED
from dto_pipeline.terminal import progress_bar
from dto_pipeline.view.run_files import RunFiles, load_run_body, open_run_files

RECEIPTS, FILES = "every receipt is valid", "every label file is its receipt's"
FOOTER = "every footer is of this run"
FOLDER, ROWS = "labels/ holds every shard once", "rows are the manifest's"


@dataclass
class Verdict:
    """What was checked, what failed a check, and what could not be checked."""

    run_dir: str
    images: int = 0
    persons: int = 0
    done: int = 0  # shards whose receipt is valid
    pending: int = 0  # shards without a receipt
    given_up: int = 0  # shards without attempts left
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

    def rule(self, name: str, next_step: str = "") -> Rule:
        """A rule of the run, made if it is new; with a next step it is a judgement."""
        return (self.judgements if next_step else self.rules).setdefault(name, Rule(name, next_step=next_step))

    def check(self, name: str, offence: str) -> None:
        """Count one application of a rule; offence: "" = it holds."""
        self.rule(name).checked += 1
        if offence:
            self.rule(name).offend(offence)

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
            f"  shards: {self.done} done, {self.given_up} given up, {self.pending} pending, "
            f"{self.rule(RECEIPTS).broken} broken",
        ]
        for rule in rules:
            found = f"{rule.broken} {'doubtful' if rule.next_step else 'BROKEN'}" if rule.broken else "ok"
            lines.append(f"  {rule.name:<{width}}  {rule.checked:>9} checked  {found}")
            lines += [f"      {offence}" for offence in rule.offences[:examples]]
            if rule.broken > examples:
                lines.append(f"      ... and {rule.broken - examples} more; --limit N or --json show them")
            lines += [f"      next: {rule.next_step}"] if rule.broken and rule.next_step else []
        lines += [f"  not checked: {text}" for text in self.unchecked]
        end = "everything holds"
        if self.given_up or self.pending:
            end = (
                f"what is done holds; {self.given_up} shards were given up, {self.pending} are pending; see dto status"
            )
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
    for shard in progress_bar(run.shards, "shard"):
        columns = _check_file(run, shard, wanted, verdict)
        if columns is not None:
            seen.update(columns.images["image_id"].tolist())
            _check_rows(run, shard, columns, body, verdict)
    verdict.rule("every image has one row")
    for image, count in seen.items():
        verdict.check("every image has one row", f"{image}: {count} rows" if count > 1 else "")
    return verdict


def _check_receipts(run: RunFiles, verdict: Verdict) -> None:
    """Count the shards that are done, broken (no valid receipt), given up and pending."""
    scan = run.scan
    verdict.done = verdict.rule(RECEIPTS).checked = len(scan.done)
    for shard, reason in sorted(scan.void.items()):
        verdict.check(RECEIPTS, f"{shard_name(shard)}: {reason}; `dto run` does it again")
    verdict.given_up = len(scan.given_up.keys() - scan.void.keys())
    verdict.pending = run.identity.shards - verdict.done - len(scan.void) - verdict.given_up


def _check_folder(run: RunFiles, verdict: Verdict) -> None:
    """A reader of all of labels/ that knows no receipts must get every image once."""
    holder = read_holder(run.directory.root)
    if holder is not None and holder.state != "gone":
        verdict.unchecked.append(f"{FOLDER}: {holder.describe()} is at work on it")
        return
    offences = dict.fromkeys(
        find_strays(run.directory, run.identity), "it is no label file of this run; move it elsewhere"
    )
    scan = scan_run(run.directory, run.identity) if run.scan.surplus else run.scan  # a launch may just have ended
    for name in map(base_name, scan.surplus):
        if place := parse_name(name):
            counting = base_name(scan.files[place[0]])
            offences[name] = f"{counting} counts, so its images are there twice; `dto run` removes it"
    verdict.rule(FOLDER)
    names = {name for name in run.directory.store.entries(LABELS) if name[0] not in "._"}  # readers skip the others
    for name in sorted(names | offences.keys()):
        verdict.check(FOLDER, f"{name}: {offences[name]}" if name in offences else "")


def _check_file(run: RunFiles, shard: int, wanted: dict[str, str], verdict: Verdict) -> LabelColumns | None:
    """Check a file against its receipt and the footer it should have; the file's columns if it can be read."""
    path, receipt = run.label_file(shard), run.scan.done[shard]
    name = base_name(path)
    table, footer, wrong = check_label_file(run.directory, shard, receipt)
    if table is None and not exists(path) and list_generations(run.directory).get(shard, -1) > receipt.generation:
        verdict.unchecked.append(f"{name}: a launch at work has replaced it meanwhile")
        return None
    verdict.check(FILES, f"{name}: {wrong}; `dto run --recheck` does the shard again" if wrong else "")
    if table is None:
        return None
    other = [f"{key} {footer.get(key)}, expected {value}" for key, value in wanted.items() if footer.get(key) != value]
    advice = "delete its receipt, then `dto run` makes it again"
    verdict.check(FOOTER, f"{name}: {'; '.join(other)}; {advice}" if other else "")
    columns = flatten_table(table)
    verdict.images += columns.num_images
    verdict.persons += columns.num_people
    return columns


def _check_rows(run: RunFiles, shard: int, columns: LabelColumns, body: BodyModel | None, verdict: Verdict) -> None:
    rows = RowChecks(columns, shard_name(shard), verdict.rule)
    if run.manifest is not None:
        verdict.rule(ROWS)  # listed before the rules of the rows
    rows.check_labels(run.identity.config)
    if body is not None:
        rows.check_heights(body)
        rows.check_reprojection(body)
    if run.manifest is None:
        return
    same = verdict.rule(ROWS)
    try:
        given = flatten_table(run.manifest.read_shard(shard), MANIFEST_PEOPLE)
    except ManifestError as error:
        same.offend(str(error))
        return
    same.checked += given.num_images
    offences = _compare_images(given, columns)
    for text in offences:
        same.offend(f"{shard_name(shard)}{text}")
    if not offences:
        rows.check_undo(given)


def _compare_images(given: LabelColumns, columns: LabelColumns) -> list[str]:
    """Offences where a label file has other images than its shard of the manifest, another order or other people."""
    wanted, found = given.images["image_id"], columns.images["image_id"]
    if np.array_equal(wanted, found):
        different = np.flatnonzero(np.diff(given.starts) != np.diff(columns.starts))
        return [f" row {row}, {found[row]}: another number of people than the manifest" for row in different]
    offences = [f": image {image} is missing" for image in sorted(set(wanted) - set(found))]
    offences += [f": image {image} is not in the manifest" for image in sorted(set(found) - set(wanted))]
    return offences or [": the manifest's images in another order, or one of them twice"]
