"""`dto manifest merge`: a second source of people fills the gaps of a manifest."""

from __future__ import annotations

import argparse

from dto_pipeline.commands.options import add_config_options, read_config, share
from dto_pipeline.commands.output import lasting_place


def add_merge_parser(actions: argparse._SubParsersAction) -> None:
    """The action `merge` of `dto manifest`."""
    merge = actions.add_parser(
        "merge",
        help="add predicted people that the released labels miss",
        description="Reads a manifest and predicted people (a run of dto predict, its label files, or npz or Parquet "
        "with columns as in dto_pipeline/data/sources/predictions.py), drops predictions that are a released person "
        "already, adds the others with source_row -1, and writes a new manifest with the same shards. Released people "
        "keep their order and content. Bodies are compared through the body model of the config (body.model_path). A "
        "report and the outcome of every prediction are written beside it.",
    )
    merge.add_argument("manifest", metavar="MANIFEST", help="file written by dto manifest build")
    merge.add_argument(
        "predictions", metavar="PREDICTIONS", help="folder of dto predict, or npz or Parquet, one row per person"
    )
    merge.add_argument("-o", "--out", required=True, metavar="FILE", help="new manifest to write")
    merge.add_argument("--min-score", type=share, metavar="S", help="least det_score of an added person (0.5)")
    merge.add_argument("--quiet", action="store_true", help="no progress line")
    add_config_options(merge)
    merge.set_defaults(run=_merge)


def _merge(arguments: argparse.Namespace) -> int:
    from dto_pipeline.config import with_body
    from dto_pipeline.data.manifest import Manifest, report_path
    from dto_pipeline.data.manifest_build.merge import MIN_SCORE, merge_predictions, outcomes_path
    from dto_pipeline.models.body import load_body

    config = read_config(arguments)
    config = with_body(config, config.body.model_path or Manifest.open(arguments.manifest).body)
    body = load_body(config.body.model_path, config.body.kid_axis)
    min_score = MIN_SCORE if arguments.min_score is None else arguments.min_score
    out = lasting_place(arguments.out)
    report = merge_predictions(
        arguments.manifest, arguments.predictions, out, body, min_score, progress=not arguments.quiet
    )
    print(report.as_table())
    print(f"\n{out} written; report in {report_path(out)}, every prediction in {outcomes_path(out)}")
    return 0
