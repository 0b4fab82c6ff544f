"""`dto diff`: compare two sets of labels."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import not_negative
from dto_pipeline.commands.output import print_report, show_several
from dto_pipeline.errors import DtoError

if TYPE_CHECKING:
    from dto_pipeline.evaluate.people_diff import PeopleDiff
    from dto_pipeline.models.body import BodyModel


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "diff",
        help="compare two sets of labels image by image and person by person; exit code 1 if they differ",
        description="Each side may be a run's folder, a folder of label files, one file, or a file of other people's "
        "labels: released DTO-Humans, CameraHMR's, predictions. Images are matched by name, people by pose and shape, "
        "or by their place in the image. Equal means equal bits. `dto view` draws the scenes. Several runs: `dto diff "
        "runs/* --against others/*` compares runs of the same subset, or all with one file, and prints a table.",
    )
    parser.add_argument("sides", metavar="RUN", nargs="+", help="the two sides; with --against, all first sides")
    parser.add_argument("--against", metavar="RUN", nargs="+", default=[], help="the other sides")
    parser.add_argument(
        "--worst", type=not_negative, default=10, metavar="N", help="how many people to name, those who moved most (10)"
    )
    parser.add_argument("--body", metavar="NPZ", help="body model that heights are measured on (that of the run)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    pairs = _pairs(arguments.sides, arguments.against)
    if len(pairs) == 1:
        diff = compare(*pairs[0], arguments.body, arguments.worst)
        print_report(diff, arguments.json)
        return 0 if diff.equal else 1
    return show_several(
        [f"{before} | {after}" for before, after in pairs],
        lambda number: compare(*pairs[number], arguments.body, arguments.worst),
        lambda diff: diff.row(),
        lambda diff: 0 if diff.equal else 1,
        arguments.json,
    )


def _pairs(sides: Sequence[str], against: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs to compare: two sides; or runs of one subset; or all with one."""
    if not against:
        if len(sides) != 2:
            raise DtoError(f"{len(sides)} sides; name two, or the others after --against")
        return [(sides[0], sides[1])]
    if len(against) == 1:
        return [(side, against[0]) for side in sides]
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.run.folder import RunDirectory, read_identity

    own, theirs = dict[str, str](), dict[str, str]()  # subset -> run
    for found, runs in ((own, sides), (theirs, against)):
        for run in runs:
            subset = read_identity(RunDirectory(as_location(run))).subset
            if subset in found:
                raise DtoError(f"{found[subset]} and {run} are both of subset {subset}; compare one of them")
            found[subset] = run
    if own.keys() != theirs.keys():
        alone = sorted(own.keys() ^ theirs.keys())
        raise DtoError(f"subsets {alone} are on one side only; name the same subsets before and after --against")
    return [(own[subset], theirs[subset]) for subset in own]


def compare(before: str, after: str, body_path: str | None = None, worst: int = 10) -> PeopleDiff:
    """Compare two places: runs, folders of label files and files of any kind, also behind a URI.

    Args:
        body_path: body model that heights are measured on; None = that of a run, if one is compared and has it.
        worst: how many people are named.

    Raises:
        LabelsError: a side holds no labels, a file that cannot be read, or labels of different body models.
    """
    import numpy as np

    from dto_pipeline.data.label_files import check_one_body, find_label_files
    from dto_pipeline.data.labels import read_labels
    from dto_pipeline.data.people import FileKind, read_people, recognise
    from dto_pipeline.evaluate.people_diff import diff_people

    places = (before, after)
    files = {place: find_label_files(place) for place in places if recognise(place) is FileKind.LABELS}
    check_one_body([file for found in files.values() for file in found])
    sides, statuses = [], []
    for place in places:
        people = read_people(files.get(place, place))
        if len(files) == len({*places}):  # both are labels of this project
            table = read_labels(*files[place], columns=["image_id", "status"], people=())
            statuses.append(np.array(table.column("status").to_pylist(), np.str_))
            people = replace(people, images=np.array(table.column("image_id").to_pylist(), dtype=object))
        sides.append(replace(people, source=place))
    return diff_people(sides[0], sides[1], statuses, _find_body([*files], body_path), worst)


def _find_body(ours: Sequence[str], path: str | None) -> BodyModel | None:
    """The body that is named, or that of the first run."""
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.models.body import load_body
    from dto_pipeline.run.folder import RunDirectory
    from dto_pipeline.view.run_files import find_run_body, open_run_files

    for place in ours:
        if RunDirectory(as_location(place)).is_run():
            return find_run_body(open_run_files(place), path)[0]
    return load_body(path) if path else None
