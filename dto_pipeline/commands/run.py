"""`dto run`: do what is left of a run, or plan it."""

from __future__ import annotations

import argparse
import io
import logging
import re
from contextlib import redirect_stdout

from dto_pipeline.commands.options import add_config_options, not_negative, positive, read_config
from dto_pipeline.commands.output import lasting_place, print_report
from dto_pipeline.config import with_body
from dto_pipeline.errors import DtoError
from dto_pipeline.models.networks import licence_lines

_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_LOG = logging.getLogger(__name__)
_EPILOG = """\
A depth network instead of depth files:
  --set depth.source=model --set depth.model=NAME_OR_FOLDER
  --set depth.revision=COMMIT    (for a name)

Licences of known networks (labels made with a non-commercial network are non-commercial):
{licences}

Exit codes:
  0    every shard of the run is done (a few failed images are rows with a status)
  1    shards were given up, or more images failed than run.max_failed_images (too many of either stop the run early),
       or the labels contradict what sound runs show, or labels/ holds other files (lines WRONG)
  2    it could not begin or go on
  3    what was selected is done, the rest of the run is pending
  130  interrupted or terminated
"""


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "run",
        help="turn a manifest into label shards; resumes by itself",
        description="Starts a run, or does what is left of it: shards with a valid receipt stay as they are, unless\n"
        "their failed images are to be done again. Once there are labels, another config, manifest, body model or\n"
        "network is refused with the difference named. Files may have moved: --images, --depth and --body name their\n"
        "new places.",
        epilog=_EPILOG.format(licences="\n".join(f"  {line}" for line in licence_lines())),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("manifest", metavar="MANIFEST", help="file written by dto manifest build")
    parser.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="the run's folder, or a URI like s3://bucket/runs/coco"
    )
    parser.add_argument(
        "--workers", type=not_negative, metavar="N", help="same as --set run.workers=N; 0 = without Ray"
    )
    parser.add_argument(
        "--address", default="local", help="Ray cluster: local (default), auto, HOST:PORT, ray://HOST:PORT"
    )
    parser.add_argument("--images", metavar="DIR", help="images folder in place of the manifest's")
    parser.add_argument("--depth", metavar="DIR", help="depth folder in place of the manifest's")
    parser.add_argument("--body", metavar="NPZ", help="same as --set body.model_path=NPZ; demo = the free stand-in")
    _add_selection(parser)
    _add_output(parser)
    add_config_options(parser)
    parser.set_defaults(run=_run)


def _add_selection(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("selection (the rest of the run stays as it is)")
    group.add_argument("--shards", default="", metavar="A-B,C", help="these shards only, e.g. 3-7,12")
    group.add_argument("--limit", type=positive, metavar="N", help="about N images: whole shards, at least one")
    group.add_argument("--subset", default="", metavar="NAME[,NAME]", help="these data sets only")
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="do shards again that were given up, and failed images of finished shards (only these images)",
    )
    group.add_argument(
        "--recheck",
        action="store_true",
        help="check the label files of finished shards first, as dto verify does, and do damaged shards again",
    )
    group.add_argument(
        "--status",
        default="",
        metavar="S[,S]",
        help="with --retry-failed: only images of these statuses (failed = shards that were given up)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--dry-run", action="store_true", help="print the plan and its time; write nothing")
    group.add_argument("--json", action="store_true", help="print plan or summary as JSON")
    group.add_argument("--quiet", action="store_true", help="no progress line")
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="info: a line per shard")
    group.add_argument(
        "--log-json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="append JSON lines to FILE; without FILE the log on stderr is JSON (then put it last)",
    )


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.run.driver import run_pipeline
    from dto_pipeline.run.plan import Selection
    from dto_pipeline.run.report import plan_pipeline
    from dto_pipeline.terminal import configure_logs

    configure_logs(arguments.log_level or ("info" if arguments.verbose else "warning"), arguments.log_json)
    if arguments.workers is not None:
        arguments.overrides.append(f"run.workers={arguments.workers}")
    config = with_body(read_config(arguments), arguments.body)
    start = {
        "retry_failed": arguments.retry_failed,
        "retry_statuses": _words(arguments.status),
        "selection": Selection(arguments.shards, _words(arguments.subset), arguments.limit),
        "address": arguments.address,
        "images_root": arguments.images,
        "depth_root": arguments.depth,
    }
    if arguments.dry_run and arguments.recheck:
        raise DtoError("--recheck removes damaged files, --dry-run changes nothing; dto verify lists the damage")
    out = lasting_place(arguments.out)
    if arguments.dry_run:
        forecast = plan_pipeline(arguments.manifest, out, config, **start)
        print_report(forecast, arguments.json)
        return forecast.exit_code
    more = {"recheck": arguments.recheck, "progress": not arguments.quiet}
    with redirect_stdout(_RayWords()):
        summary = run_pipeline(arguments.manifest, out, config, **start, **more)
    print_report(summary, arguments.json)
    if summary.failed_images and not arguments.retry_failed and not arguments.json:
        print(f"{summary.failed_images} images failed; their rows say why. Repair them, then use --retry-failed")
    return summary.exit_code


class _RayWords(io.TextIOBase):
    """Standard output of Ray, which prints there what its cluster reports, such as dead workers: made lines of the log.

    So that standard output holds the summary only, which may be JSON, and a log in JSON holds nothing else.
    """

    def write(self, text: str) -> int:
        if plain := _COLOURS.sub("", text).strip():
            _LOG.warning("Ray: %s", plain)
        return len(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
