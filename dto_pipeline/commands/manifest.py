"""`dto manifest build`: a dataset description and its files become a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("manifest", help="make the list of what goes in")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser(
        "build",
        help="join labels, images and sidecar of a data set; cut it into shards",
        description="Reads a dataset YAML and the files it names, and writes one Parquet manifest with its shards "
        "fixed, plus a report of what was found beside it. Nothing is dropped: what cannot be used is listed with the "
        "reason.",
    )
    build.add_argument("dataset", metavar="YAML", help="dataset description, see manifests/")
    build.add_argument("--data-root", required=True, metavar="DIR", help="folder that the YAML's paths start from")
    build.add_argument("-o", "--out", required=True, metavar="FILE", help="manifest to write, e.g. demo.parquet")
    build.add_argument("--quiet", action="store_true", help="no progress line")
    build.set_defaults(run=_build)


def _build(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.dataset import load_dataset
    from dto_pipeline.data.manifest import build_manifest, report_path

    out = Path(arguments.out)
    report = build_manifest(load_dataset(arguments.dataset, arguments.data_root), out, not arguments.quiet)
    print(report.as_table())
    print(f"\n{out} written; report in {report_path(out)}")
    return 0
