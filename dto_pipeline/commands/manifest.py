"""`dto manifest`: `build` lists the input of a run, `check` opens its images again, `merge` adds people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from dto_pipeline.commands.options import add_config_options, positive, read_config, share
from dto_pipeline.commands.output import lasting_place
from dto_pipeline.config import RunConfig
from dto_pipeline.errors import DtoError

_CHANGES: dict[str, tuple[str, ...] | None] = {  # keys of the YAML -> the values they may have; None = any word
    "source": None,
    "images_in": ("folder", "tars"),
    "masks": ("sidecar", "detection"),
    "principal_point": ("centre", "free"),
    "label_values": ("after", "before"),
}
_PLACES = ("labels", "images", "depth", "sidecar", "predictions")
_BUILD = (
    "Reads a dataset YAML and the files it names, and writes one Parquet manifest, cut into shards; beside it a report "
    "with counts (*.report.json) and everything that cannot be used, with the reason (*.findings.parquet). Folders and "
    "files may be local or URIs (s3://, gs://, ...). Exit code 1: written, but more than --max-failed-images of it "
    "cannot be used, or boxes are not those of their people."
)
_CHECK = (
    "Reads every image's header again, or decodes it, and lists what is missing, corrupt or changed. Exit code 1 if "
    "anything is. An image whose problem the manifest lists is counted as known, or as mended if the problem is gone."
)
_MERGE = (
    "Reads a manifest and predicted people (a run of dto predict, its label files, or npz or Parquet with columns as "
    "in dto_pipeline/data/sources/predictions.py), drops predictions of people who are in the labels already, adds the "
    "others with source_row -1, and writes a new manifest with the same shards. Released people keep their order and "
    "content. Bodies are compared through the body model of the config (body.model_path). A report and the outcome of "
    "every prediction are written next to the manifest. Exit code 1: written, but no prediction could be used (those "
    "below --min-score do not count), or columns of the predictions contradict each other."
)


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("manifest", help="make, check or extend the list of images and people for a run")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, run: Callable[[argparse.Namespace], int], short: str, text: str) -> argparse.ArgumentParser:
        added = actions.add_parser(name, help=short, description=text)
        added.add_argument("--quiet", action="store_true", help="no progress line")
        added.set_defaults(run=run)
        return added

    build = action("build", _build, "join labels, images and sidecar of a data set; cut it into shards", _BUILD)
    shipped = "aic, coco, insta1, insta2, mpii, relative_human"
    explained = (
        f"dataset description, or the name of a shipped one ({shipped}); dto_pipeline/data/dataset.py has its keys"
    )
    build.add_argument("dataset", metavar="YAML", help=explained)
    build.add_argument("--data-root", default=".", metavar="DIR", help="folder that the YAML's paths start from (.)")
    build.add_argument("-o", "--out", required=True, metavar="FILE", help="manifest to write, e.g. demo.parquet")
    for place in _PLACES:
        build.add_argument(f"--{place}", metavar="PATH", help=f"instead of the YAML's {place}; '' = none")
    for key, choices in _CHANGES.items():
        option, metavar = f"--{key.replace('_', '-')}", None if choices else "KIND"
        build.add_argument(option, choices=choices, metavar=metavar, help=f"instead of the YAML's {key}")
    build.add_argument("--shard-images", type=positive, metavar="N", help="instead of the YAML's shard_images")
    shared = "report images that are in this other manifest too; may be given several times"
    build.add_argument("--against", action="append", default=[], metavar="MANIFEST", help=shared)
    limit = (
        "end with exit code 1 if more than this share of images or label rows cannot be used, whatever the reason "
        "(default %(default)g; 1 = never); the manifest is written all the same"
    )
    most = RunConfig.max_failed_images
    build.add_argument("--max-failed-images", type=share, default=most, metavar="SHARE", help=limit)
    build.add_argument("--skip-unlabelled", action="store_true", help="do not report images without labels")

    check = action("check", _check, "check whether the images are still as the manifest says", _CHECK)
    check.add_argument("manifest", metavar="MANIFEST", help="file written by dto manifest build")
    check.add_argument("--deep", action="store_true", help="decode every image")
    check.add_argument("--images", metavar="DIR", help="images folder in place of the manifest's")
    check.add_argument("--report", metavar="FILE", help="write the whole list as JSON")

    merge = action("merge", _merge, "add predicted people that the released labels miss", _MERGE)
    merge.add_argument("manifest", metavar="MANIFEST", help="file written by dto manifest build")
    people = "folder of dto predict, or npz or Parquet, one row per person"
    merge.add_argument("predictions", metavar="PREDICTIONS", help=people)
    merge.add_argument("-o", "--out", required=True, metavar="FILE", help="new manifest to write")
    merge.add_argument("--min-score", type=share, metavar="S", help="least det_score of an added person (0.5)")
    add_config_options(merge)


def _build(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.dataset import load_dataset
    from dto_pipeline.data.manifest import report_path
    from dto_pipeline.data.manifest_build.build_report import findings_path
    from dto_pipeline.data.manifest_build.builder import build_manifest
    from dto_pipeline.data.storage import as_location

    given = {key: value for key, value in vars(arguments).items() if value is not None}
    places = {key: given[key] for key in _PLACES if given.get(key)}
    changes = {key: given[key] for key in (*_CHANGES, "shard_images") if key in given}
    changes |= {key: "" for key in _PLACES if given.get(key) == ""}
    dataset = load_dataset(arguments.dataset, arguments.data_root, places, **changes)
    out = as_location(_manifest_place(arguments.out))
    report = build_manifest(dataset, out, not arguments.quiet, arguments.against, not arguments.skip_unlabelled)
    print(report.as_table())
    print(f"\n{out} written; report in {report_path(out)}, what cannot be used is listed in {findings_path(out)}")
    complaint = report.complaint(arguments.max_failed_images)
    if complaint:
        print(f"\n{complaint}", file=sys.stderr)
    return 1 if complaint else 0


def _manifest_place(text: str) -> str:
    """Where a manifest is written. Raises: DtoError: a folder, or what ends with this process."""
    if Path(text).is_dir():  # "" is the current folder
        raise DtoError(f"{Path(text)} is a folder; name the manifest's file (-o), e.g. demo.parquet")
    return lasting_place(text)


def _check(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.files import write_json_atomic
    from dto_pipeline.data.manifest_build.check import check_manifest
    from dto_pipeline.data.storage import as_location

    images = None if arguments.images is None else as_location(arguments.images)
    report = check_manifest(as_location(arguments.manifest), arguments.deep, images, not arguments.quiet)
    print(report.as_table())
    if arguments.report:
        write_json_atomic(Path(arguments.report), report.to_json())
    return 1 if report.faults else 0


def _merge(arguments: argparse.Namespace) -> int:
    from dto_pipeline.config import with_body
    from dto_pipeline.data.manifest import Manifest, report_path
    from dto_pipeline.data.manifest_build.merge import MIN_SCORE, merge_predictions, outcomes_path
    from dto_pipeline.models.body import load_body

    config = read_config(arguments)
    config = with_body(config, config.body.model_path or Manifest.open(arguments.manifest).body)
    body = load_body(config.body.model_path, config.body.kid_axis)
    min_score = MIN_SCORE if arguments.min_score is None else arguments.min_score
    out, progress = _manifest_place(arguments.out), not arguments.quiet
    report = merge_predictions(arguments.manifest, arguments.predictions, out, body, min_score, progress)
    print(report.as_table())
    print(f"\n{out} written; report in {report_path(out)}, every prediction in {outcomes_path(out)}")
    if report.complaint:
        print(f"\n{report.complaint}; mend it and merge again", file=sys.stderr)
    return 1 if report.complaint else 0
