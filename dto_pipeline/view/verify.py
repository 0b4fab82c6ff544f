"""`dto verify`: does a run hold what its files say it holds?

Three kinds of rules: receipts against label files, label rows against the manifest, labels against what a fit may do
(`data.invariants`). Reads everything, writes nothing. What could not be checked is listed, never passed in silence.
Broken is what was declared done and does not hold; a shard that nobody has done yet is pending, one that was tried in
vain is given up, in the words of `dto status`. Doubtful is a person in a sound row whom the same run would give again
(a check with a next step): it is listed with the next step and changes no exit code.

Exit codes, as `dto run` has them: 0 every shard is done and holds, doubtful people or not; 1 something is broken, or
shards were given up; 3 what is done holds and the rest is pending.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
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
from dto_pipeline.data.labels import LabelsError, read_label_metadata
from dto_pipeline.data.manifest import ManifestError
from dto_pipeline.data.receipts import LABELS, Receipt, parse_name, shard_name
from dto_pipeline.data.storage import base_name
from dto_pipeline.data.store import sha256_of
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.run.folder import find_strays
from dto_pipeline.run.lease import read_holder
from dto_pipeline.run.publish import count_statuses
from dto_pipeline.run.report import EXIT_DONE, EXIT_MISSING, EXIT_SELECTED
from dto_pipeline.view.run_files import RunFiles, load_run_body, open_run_files

_RECEIPTS = "every receipt holds"
_MEND = "`dto run` does the shard again"  # the verb leaves a note for it, see `run.folder`
_SHA, _SCHEMA = "sha256 of the file is the receipt's", "file has the label schema"
_COUNTS = "counts and keys are the receipt's"
_ONCE = "labels/ holds every shard once"
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
    given_up: dict[int, str] = field(default_factory=dict)  # shards tried in vain -> last error
    damaged: list[int] = field(default_factory=list)  # shards whose label file is not what their receipt says
    rules: dict[str, Rule] = field(default_factory=dict)
    judgements: dict[str, Rule] = field(default_factory=dict)  # who is doubtful; `broken` counts them
    unchecked: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Nothing is broken; the run may be unfinished all the same."""
        return all(rule.broken == 0 for rule in self.rules.values())

    @property
    def doubtful(self) -> int:
        """People in sound rows that somebody should look at, counted once per judgement."""
        return sum(rule.broken for rule in self.judgements.values())

    @property
    def exit_code(self) -> int:
        """See the module."""
        if not self.passed or self.given_up:
            return EXIT_MISSING
        return EXIT_SELECTED if self.pending else EXIT_DONE

    def rule(self, name: str) -> Rule:
        return self.rules.setdefault(name, Rule(name))

    def judgement(self, check: Check) -> Rule:
        return self.judgements.setdefault(check.name, Rule(check.name, next_step=check.next_step))

    def to_json(self) -> dict[str, Any]:
        """Plain dict, JSON-ready."""
        derived = {"passed": self.passed, "doubtful": self.doubtful, "exit_code": self.exit_code}
        return {**dataclasses.asdict(self), **derived}

    def as_table(self, examples: int = 5) -> str:
        """Text for a terminal: one line per rule, then the first offences of each broken one."""
        width = max(len(name) for name in (*self.rules, *self.judgements))
        broken = self.rule(_RECEIPTS).broken
        lines = [
            f"{self.run_dir}: {self.images} images, {self.persons} persons",
            f"  shards: {self.done} done, {len(self.given_up)} given up, {len(self.pending)} pending, {broken} broken",
        ]
        for rule in self.rules.values():
            lines += _rule_lines(rule, "BROKEN", width, examples)
        for rule in self.judgements.values():
            lines += _rule_lines(rule, "doubtful", width, examples)
        for word, shards in (("given up", self.given_up), ("pending", self.pending)):
            lines += [f"  {word}: {shard_name(shard)}: {text}" for shard, text in list(shards.items())[:examples]]
            lines += [f"  {word}: ... and {len(shards) - examples} more"] if len(shards) > examples else []
        lines += [f"  not checked: {text}" for text in self.unchecked]
        return "\n".join([*lines, self._conclusion()])

    def _conclusion(self) -> str:
        if not self.passed:
            return "some of it does not hold"
        holds = self._holds
        if self.doubtful:
            return f"{holds}; {self.doubtful} people are doubtful, which running again will not change"
        return holds

    @property
    def _holds(self) -> str:
        if self.given_up or self.pending:
            return f"what is done holds; {len(self.given_up)} shards were given up, {len(self.pending)} are pending"
        return "everything holds"


def _rule_lines(rule: Rule, word: str, width: int, examples: int) -> list[str]:
    found = "ok" if rule.broken == 0 else f"{rule.broken} {word}"
    lines = [f"  {rule.name:<{width}}  {rule.checked:>9} checked  {found}"]
    lines += [f"      {offence}" for offence in rule.offences[:examples]]
    if rule.broken > examples:
        lines.append(f"      ... and {rule.broken - examples} more; --limit N or --json show them")
    return lines + ([f"      next: {rule.next_step}"] if rule.broken and rule.next_step else [])


def verify_run(run_dir: str | Path, manifest: str | Path | None = None, body_path: str | Path | None = None) -> Verdict:
    """Check a run.

    Args:
        run_dir: the run's folder.
        manifest: where its manifest lies now; None = where it was.
        body_path: the body model of the run where it lies now; None = as in the run's config.

    Raises:
        RunDirectoryError: the folder is not a run.
        ManifestError: the manifest that was named is another one or cannot be read.
    """
    run = open_run_files(run_dir, manifest)
    verdict = Verdict(str(run_dir))
    if run.manifest is None:
        verdict.unchecked.append(f"rows against the manifest: {run.manifest_problem}")
    body = _find_body(run, body_path, verdict)
    _check_receipts(run, verdict)
    _check_folder(run, verdict)
    _check_footers(run, verdict)
    seen: Counter[str] = Counter()
    for shard in run.shards:
        before = _damage(verdict)
        found = list(_check_file(run, shard, verdict))
        if _damage(verdict) > before:
            verdict.damaged.append(shard)
        for columns in found:
            seen.update(columns.images["image_id"].tolist())
            _check_rows(run, shard, columns, body, verdict)
    _check_once(seen, verdict)
    return verdict


def _find_body(run: RunFiles, path: str | Path | None, verdict: Verdict) -> BodyModel | None:
    """The run's body model; without it heights and reprojection stay unchecked."""
    try:
        return load_run_body(run, path)
    except (BodyModelError, LabelsError) as error:
        verdict.unchecked.append(f"heights and joints: {error}; name the body model with --body")
        return None


def _check_receipts(run: RunFiles, verdict: Verdict) -> None:
    """Tell the shards apart: done, broken (a receipt that does not hold), given up, pending."""
    rule, scan = verdict.rule(_RECEIPTS), run.scan
    verdict.done = len(scan.done)
    rule.checked = len(scan.done) + len(scan.void)
    for shard, reason in sorted(scan.void.items()):
        rule.offend(f"{shard_name(shard)}: {reason}; `dto run` does it again")
    for shard in range(run.identity.shards):
        if shard in scan.done or shard in scan.void:
            continue
        failure = scan.failures.get(shard)
        if failure is not None and failure.given_up:
            verdict.given_up[shard] = f"{failure.error}; `dto run --retry-failed` takes it up again"
        elif shard in scan.labels.orphans:
            verdict.pending[shard] = "its labels lie there without a receipt; `dto run` adopts them if they are whole"
        else:
            verdict.pending[shard] = "no receipt; `dto run` does it" + (f"; tried: {failure.error}" if failure else "")


def _check_folder(run: RunFiles, verdict: Verdict) -> None:
    """Somebody who reads all of labels/ and knows no receipts sees every image once."""
    holder = read_holder(run.directory.root)
    if holder is not None and holder.state != "gone":
        verdict.unchecked.append(f"{_ONCE}: {holder.describe()} is at work on it")
        return
    rule, scan = verdict.rule(_ONCE), run.scan
    names = [name for name in run.directory.store.entries(LABELS) if name[0] not in "._"]  # others are not read
    counting = {base_name(path) for path in scan.labels.files.values()}
    strays = find_strays(run.directory, run.identity)
    rule.checked += len(names)
    for name in sorted({*names} - counting):
        place = parse_name(name)
        if place is None or name in strays:
            rule.offend(f"{name}: it is no label file of this run; move it elsewhere")
        elif f"{LABELS}/{name}" in scan.labels.surplus:
            other = base_name(scan.labels.files[place[0]])
            rule.offend(f"{name} lies beside {other}, which counts: its images are there twice; `dto run` removes it")


def _check_footers(run: RunFiles, verdict: Verdict) -> None:
    """Every label file of the run is of its settings, its manifest, its versions and its inputs."""
    rule, identity = verdict.rule("every footer is of this run"), run.identity
    wanted = {"config_hash": identity.config_hash, "manifest_fingerprint": identity.manifest_fingerprint}
    bodies = {"body_sha256": identity.body_sha256} if identity.body_sha256 else {}
    for shard in run.shards:
        path = run.label_file(shard)
        try:
            footer = read_label_metadata(path)
        except LabelsError:
            continue  # told by the file's own rule
        rule.checked += 1
        if "body_sha256" in footer:
            bodies.setdefault("body_sha256", footer["body_sha256"])  # until 0.3.0 run.json holds none: the first file's
        wrong = [
            f"{name} {footer.get(name)}, expected {value}"
            for name, value in (wanted | bodies).items()
            if footer.get(name) != value
        ]
        for name, told in (("versions", identity.versions), ("inputs", identity.inputs)):
            if told and footer.get(name) != json.dumps(told, sort_keys=True):
                wrong.append(f"{name} {footer.get(name)}, expected {json.dumps(told, sort_keys=True)}")
        if wrong:
            advice = "take its receipt away, then `dto run` makes it anew"
            rule.offend(f"{base_name(path)}: {'; '.join(wrong)}; {advice}")


def _check_file(run: RunFiles, shard: int, verdict: Verdict) -> Iterator[LabelColumns]:
    """A receipt against its file; gives the file's columns if it can be read."""
    receipt, path = run.scan.done[shard], run.label_file(shard)
    sha, schema = verdict.rule(_SHA), verdict.rule(_SCHEMA)
    sha.checked += 1
    schema.checked += 1
    try:
        found = sha256_of(path)
        if found != receipt.label_sha256:
            sha.offend(f"{base_name(path)}: {found[:16]}, the receipt says {receipt.label_sha256[:16]}; {_MEND}")
        table = run.read_shard(shard)
        footer = read_label_metadata(path)
    except (LabelsError, OSError) as error:
        schema.offend(f"{error}; {_MEND}")
        return
    _check_counts(base_name(path), receipt, table, footer, verdict)
    verdict.images += table.num_rows
    columns = flatten_table(table)
    verdict.persons += columns.num_people
    yield columns


def _damage(verdict: Verdict) -> int:
    """Offences of label files against their receipts."""
    return sum(verdict.rule(name).broken for name in (_SHA, _SCHEMA, _COUNTS))


def _check_counts(name: str, receipt: Receipt, table: Any, footer: Mapping[str, str], verdict: Verdict) -> None:
    rule = verdict.rule(_COUNTS)
    rule.checked += 1
    images, persons = count_statuses(table)
    facts = {
        "rows": (table.num_rows, receipt.rows),
        "images by status": (images, receipt.image_status),
        "persons by status": (persons, receipt.person_status),
        "shard_key": (footer.get("shard_key"), receipt.shard_key),
        "config_hash": (footer.get("config_hash"), receipt.config_hash),
    }
    wrong = [f"{fact} {found}, the receipt says {told}" for fact, (found, told) in facts.items() if found != told]
    if wrong:
        rule.offend(f"{name}: {'; '.join(wrong)}; {_MEND}")


def _check_rows(run: RunFiles, shard: int, columns: LabelColumns, body: BodyModel | None, verdict: Verdict) -> None:
    checks = check_labels(columns, limits_of(run.identity.config))
    if body is not None:
        checks += [check_heights(columns, body), check_reprojection(columns, body)]
    if run.manifest is not None and (given := _read_manifest(run, shard, verdict)) is not None:
        checks += _check_manifest_rows(shard, columns, given, verdict)
    for check in checks:
        _add(check, shard, columns, verdict)


def _read_manifest(run: RunFiles, shard: int, verdict: Verdict) -> LabelColumns | None:
    assert run.manifest is not None
    try:
        return flatten_table(run.manifest.read_shard(shard), MANIFEST_PEOPLE)
    except ManifestError as error:
        verdict.rule("rows are the manifest's").offend(str(error))
        return None


def _check_manifest_rows(shard: int, columns: LabelColumns, given: LabelColumns, verdict: Verdict) -> list[Check]:
    """Same images in the same order with the same number of people, then the undo checks."""
    rule = verdict.rule("rows are the manifest's")
    rule.checked += given.num_images
    wanted, found = given.images["image_id"], columns.images["image_id"]
    if not np.array_equal(wanted, found):
        missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
        if not missing and not extra:
            rule.offend(f"{shard_name(shard)}: the manifest's images in another order, or one of them twice")
        for text, names in (("is missing", missing), ("is not in the manifest", extra)):
            for name in names:
                rule.offend(f"{shard_name(shard)}: image {name} {text}")
        return []
    different = np.flatnonzero(np.diff(given.starts) != np.diff(columns.starts))
    for row in different:
        rule.offend(f"{shard_name(shard)} row {row}, {found[row]}: another number of people than the manifest")
    return [] if different.size else check_undo(columns, given)


def _check_once(seen: Counter[str], verdict: Verdict) -> None:
    rule = verdict.rule("every image has one row")
    rule.checked += len(seen)
    for image, count in seen.items():
        if count > 1:
            rule.offend(f"{image}: {count} rows")


def _add(check: Check, shard: int, columns: LabelColumns, verdict: Verdict) -> None:
    rule = verdict.judgement(check) if check.next_step else verdict.rule(check.name)
    rule.checked += int(check.applies.sum())
    for index in np.flatnonzero(check.broken):
        found = check.found[index]
        shown = f"{found:.4g}" if isinstance(found, float | np.floating) else str(found)
        rule.offend(f"{_where(check, int(index), shard, columns)}: {shown}; expected {check.expected}")


def _where(check: Check, index: int, shard: int, columns: LabelColumns) -> str:
    row = int(columns.owner[index]) if check.of_people else index
    place = f"{shard_name(shard)} row {row}, {columns.images['image_id'][row]}"
    return f"{place}, person {index - int(columns.starts[row])}" if check.of_people else place
