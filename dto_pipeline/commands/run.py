"""`dto run`: do what is left of a run."""

from __future__ import annotations

import argparse

from dto_pipeline.commands.options import add_config_options, read_config
from dto_pipeline.models.depth_licences import describe_licences


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "run",
        help="turn a manifest into label shards; resumes by itself",
        description="Starts a run, or does what is left of it: a shard with a receipt is never touched again. Another "
        "config or manifest than the run was started with is refused with the difference named.",
        epilog="A depth network instead of depth files: --set depth.source=model --set depth.model=NAME_OR_FOLDER "
        f"--set depth.revision=COMMIT. {describe_licences()}",
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="file written by dto manifest build")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="the run's folder")
    parser.add_argument("--workers", type=int, metavar="N", help="same as --set run.workers=N; 0 = without Ray")
    parser.add_argument("--address", default="local", help="Ray cluster: local (default), auto, ray://HOST:PORT")
    parser.add_argument("--retry-failed", action="store_true", help="take up shards that were given up")
    parser.add_argument(
        "--retry-images", action="store_true", help="do shards again that hold images which could not be processed"
    )
    parser.add_argument("--images", metavar="DIR", help="images folder in place of the manifest's")
    parser.add_argument("--depth", metavar="DIR", help="depth folder in place of the manifest's")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    add_config_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.driver import run_pipeline

    if arguments.workers is not None:
        arguments.overrides.append(f"run.workers={arguments.workers}")
    summary = run_pipeline(
        arguments.manifest,
        arguments.out,
        read_config(arguments),
        address=arguments.address,
        retry_failed=arguments.retry_failed,
        retry_images=arguments.retry_images,
        progress=not arguments.quiet,
        images_root=arguments.images,
        depth_root=arguments.depth,
    )
    print(summary.as_table())
    if summary.failed_images and not arguments.retry_images:
        print(f"{summary.failed_images} images failed and have rows that say why; mend them, then use --retry-images")
    return summary.exit_code
