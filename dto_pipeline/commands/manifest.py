"""`dto manifest`: `build` lists what goes in, `check` looks whether its images are still there, `merge` adds people."""

from __future__ import annotations

import argparse

from dto_pipeline.commands.merge import add_merge_parser

_PLACES = ("labels", "images", "depth", "sidecar", "predictions")


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("manifest", help="make or check the list of what goes in")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    _add_build(actions)
    _add_check(actions)
    add_merge_parser(actions)


def _add_build(actions: argparse._SubParsersAction) -> None:
    build = actions.add_parser(
        "build",
        help="join labels, images and sidecar of a data set; cut it into shards",
        description="Reads a dataset YAML and the files it names, and writes one Parquet manifest with its shards "
        "fixed. Beside it: a report of what was found (*.report.json) and every row that cannot be used, with the "
        "reason (*.findings.parquet). Folders and files may be local or URIs (s3://, gs://, ...).",
    )
    build.add_argument("dataset", metavar="YAML", help="dataset description, see manifests/")
    build.add_argument("--data-root", default=".", metavar="DIR", help="folder that the YAML's paths start from (.)")
    build.add_argument("-o", "--out", required=True, metavar="FILE", help="manifest to write, e.g. demo.parquet")
    for place in _PLACES:
        build.add_argument(f"--{place}", metavar="PATH", help=f"{place} in place of the YAML's")
    build.add_argument(
        "--source", metavar="KIND", help="in place of the YAML's source, e.g. ma_hmr: what the labels are"
    )
    build.add_argument("--images-in", choices=("folder", "tars"), help="in place of the YAML's images_in")
    build.add_argument("--label-values", choices=("after", "before"), help="in place of the YAML's label_values")
    build.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="MANIFEST",
        help="report images that this other manifest has too; may be given several times",
    )
    build.add_argument("--skip-unlabelled", action="store_true", help="do not look for images without labels")
    build.add_argument("--quiet", action="store_true", help="no progress line")
    build.set_defaults(run=_build)


def _add_check(actions: argparse._SubParsersAction) -> None:
    check = actions.add_parser(
        "check",
        help="are the images still what the manifest says?",
        description="Reads every image's header again, or decodes it, and lists what is missing, corrupt or changed. "
        "Exit code 1 if anything is.",
    )
    check.add_argument("manifest", metavar="MANIFEST", help="file written by dto manifest build")
    check.add_argument("--deep", action="store_true", help="decode every image")
    check.add_argument("--images", metavar="DIR", help="images folder in place of the manifest's")
    check.add_argument("--report", metavar="FILE", help="write all of it as JSON")
    check.add_argument("--quiet", action="store_true", help="no progress line")
    check.set_defaults(run=_check)


def _build(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.dataset import load_dataset
    from dto_pipeline.data.manifest import build_manifest, report_path
    from dto_pipeline.data.storage import as_location

    places = {key: getattr(arguments, key) for key in _PLACES if getattr(arguments, key) is not None}
    changes = {
        key: getattr(arguments, key) for key in ("source", "images_in", "label_values") if getattr(arguments, key)
    }
    dataset = load_dataset(arguments.dataset, arguments.data_root, places, **changes)
    out = as_location(arguments.out)
    report = build_manifest(
        dataset, out, not arguments.quiet, against=arguments.against, unlabelled=not arguments.skip_unlabelled
    )
    print(report.as_table())
    print(f"\n{out} written; report in {report_path(out)}, what cannot be used in {report.findings_file}")
    if report.images and report.image_problems["image_missing"] == report.images:
        print("Not one image was found: check --data-root and --images before a run.")
        return 1
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from dto_pipeline.data.files import write_json_atomic
    from dto_pipeline.data.manifest_check import check_manifest
    from dto_pipeline.data.storage import as_location

    images = None if arguments.images is None else as_location(arguments.images)
    report = check_manifest(as_location(arguments.manifest), arguments.deep, images, not arguments.quiet)
    print(report.as_table())
    if arguments.report:
        write_json_atomic(Path(arguments.report), report.to_json())
    return report.exit_code
