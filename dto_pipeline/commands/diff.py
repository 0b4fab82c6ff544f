"""`dto diff`: what two sets of labels say differently."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dto_pipeline.commands.options import not_negative
from dto_pipeline.commands.output import print_report, show_several
from dto_pipeline.errors import DtoError

if TYPE_CHECKING:
    from dto_pipeline.data.images import ImageStore
    from dto_pipeline.data.people import People
    from dto_pipeline.evaluate.people_diff import PeopleDiff
    from dto_pipeline.models.body import BodyModel
    from dto_pipeline.view.diff import LabelDiff
    from dto_pipeline.view.run_files import RunFiles

_IMAGES_AT_ONCE = 4096  # of a file, whose people are compared together


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "diff",
        help="compare two sets of labels image by image and person by person; exit code 1 if they differ",
        description="Each side may be a run's folder, a folder of label files, one file, or a file of other people's "
        "labels: released DTO-Humans, CameraHMR's, predictions. Runs and label files are joined by image key and "
        "person index, and equal means equal bits. With a file of others, images meet by their names and people by "
        "pose and shape, else by their place in the picture. Several runs: `dto diff runs/* --against others/*` "
        "compares pairs of one subset, or all with the one file named, and ends with a table.",
    )
    parser.add_argument("sides", metavar="RUN", nargs="+", help="the two sides, or with --against all of the first")
    parser.add_argument("--against", metavar="RUN", nargs="+", default=[], help="the other sides")
    parser.add_argument(
        "--worst", type=not_negative, default=10, metavar="N", help="persons named, those that moved most (10)"
    )
    parser.add_argument("--body", metavar="NPZ", help="body model that heights are measured on (that of the run)")
    parser.add_argument("--draw", metavar="DIR", help="draw the worst scenes into this folder; not of two runs")
    parser.add_argument("--images", metavar="DIR", help="folder of the photographs for --draw (that of the run)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    pairs = _pairs(arguments.sides, arguments.against)
    if len(pairs) == 1:
        diff = _compare(*pairs[0], arguments)
        print_report(diff, arguments.json)
        return 0 if diff.equal else 1
    return show_several(
        [f"{before} | {after}" for before, after in pairs],
        lambda number: _compare(*pairs[number], arguments),
        lambda diff: diff.row(),
        lambda diff: 0 if diff.equal else 1,
        arguments.json,
    )


def _pairs(sides: Sequence[str], against: Sequence[str]) -> list[tuple[str, str]]:
    """Who is compared with whom: two sides; or runs of one subset; or all with one."""
    if not against:
        if len(sides) != 2:
            raise DtoError(f"{len(sides)} sides; name two, or the others behind --against")
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
        raise DtoError(f"subsets {alone} are on one side only; name the same subsets before and behind --against")
    return [(own[subset], theirs[subset]) for subset in own]


def _is_ours(place: str) -> bool:
    """Runs, exports in Parquet and label files, also behind a URI; told by what is there."""
    from dto_pipeline.data.people import FileKind, recognise
    from dto_pipeline.data.storage import as_location

    location = as_location(place)
    return isinstance(location, str) or recognise(location) is FileKind.DTO_LABELS


def _compare(before: str, after: str, arguments: argparse.Namespace) -> LabelDiff | PeopleDiff:
    """Two sides of ours bit by bit; else one side whole and the other in parts: of label files one at a time."""
    from dto_pipeline.data.people import read_people
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.evaluate.people_diff import diff_people
    from dto_pipeline.models.body import load_body
    from dto_pipeline.run.folder import RunDirectory
    from dto_pipeline.view.diff import diff_labels
    from dto_pipeline.view.run_files import load_run_body, open_run_files

    ours = [side for side in (before, after) if _is_ours(side)]
    if len(ours) == 2:
        if arguments.draw:
            raise DtoError("--draw is for files of others; `dto view RUN --key IMAGE` draws scenes of a run")
        return diff_labels(before, after, arguments.worst)
    run = next((open_run_files(side) for side in ours if RunDirectory(as_location(side)).is_run()), None)
    body = load_run_body(run, arguments.body) if run else load_body(arguments.body) if arguments.body else None
    if arguments.draw and body is None:
        raise DtoError("--draw needs a body model; name it with --body (demo = the stand-in)")
    swapped = ours == [after]
    in_parts, whole = (after, before) if swapped else (before, after)
    names, parts = _in_parts(in_parts, in_parts in ours)
    diff = diff_people(parts, names, read_people(whole), (before, after), body, arguments.worst, swapped)
    if arguments.draw and body is not None:
        _draw(diff, run, body, arguments)
    return diff


def _in_parts(place: str, ours: bool) -> tuple[list[str], Iterator[People]]:
    """Names of all images, and their people part by part."""
    from dto_pipeline.data.label_files import read_label_files
    from dto_pipeline.data.people import read_people
    from dto_pipeline.view.run_files import find_labels

    if ours:
        files = find_labels(place)
        names = read_label_files(files, ["image_path"]).column("image_path").to_pylist()
        return names, (read_people([file]) for file in files)
    people = read_people(place)
    starts = range(0, max(1, people.num_images), _IMAGES_AT_ONCE)
    return people.images.tolist(), (people.part(start, start + _IMAGES_AT_ONCE) for start in starts)


def _draw(diff: PeopleDiff, run: RunFiles | None, body: BodyModel, arguments: argparse.Namespace) -> None:
    """The worst scenes, both sides, as pages; without photographs where neither --images nor a manifest has them."""
    from dto_pipeline.data.images import ImageFolder
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.data.tars import open_images
    from dto_pipeline.view.pages import PeopleScene, draw_people
    from dto_pipeline.view.panel import People, save_png
    from dto_pipeline.view.pictures import file_name

    images: ImageStore | None = None
    files: dict[str, str] = {}  # image -> its file
    if arguments.images is not None:
        images = ImageFolder(as_location(arguments.images))
    elif run is not None and run.manifest is not None:
        images = open_images(run.manifest.images_root, run.manifest.path)
        for shard in range(run.manifest.num_shards):
            table = run.manifest.read_shard(shard, ["image_path", "image_file"])
            files.update(zip(table["image_path"].to_pylist(), table["image_file"].to_pylist(), strict=True))
    for scene in diff.scenes:
        names = [scene.before_image, scene.after_image]
        states = [(diff.before, People(**scene.before)), (diff.after, People(**scene.after))]
        title = f"{scene.before_image}: z differs by up to {scene.largest_dz:.2f} m"
        page = PeopleScene(title, states, scene.intrinsics, scene.size, [files.get(name, name) for name in names])
        path = Path(arguments.draw) / f"{file_name(scene.before_image)}.png"
        save_png(draw_people(page, body, images), path)
        if not arguments.json:
            print(path)
