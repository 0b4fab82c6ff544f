"""`dto synth`: a synthetic crowd benchmark with exact truth, in the formats the pipeline reads."""

from __future__ import annotations

import argparse

from dto_pipeline.commands.options import add_body_option, add_heights_option, not_negative, positive
from dto_pipeline.commands.output import local_place, show_progress
from dto_pipeline.errors import DtoError


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "synth",
        help="write a synthetic crowd benchmark with exact truth",
        description="Writes pictures of crowds, depth maps, labels, sidecar and the exact truth; equal settings give "
        "identical bytes. Then: dto manifest build DIR/dataset.yaml --data-root DIR -o "
        "DIR/manifest.parquet; dto run DIR/manifest.parquet -o RUN; dto eval synthetic RUN --truth DIR.",
        epilog="--list names the difficulties and the options of --set.",
    )
    parser.add_argument("-o", "--out", metavar="DIR", help="folder to write to")
    parser.add_argument("--images", type=positive, default=64, metavar="N", help="images to make (64)")
    parser.add_argument(
        "--seed",
        type=not_negative,
        default=201,
        help="random seed (201); the joint solver was tuned on 1, 2, 11, 12, 31 and 32",
    )
    parser.add_argument(
        "--difficulty", default="standard", metavar="NAME", help="what makes the crowds hard, see --list (standard)"
    )
    parser.add_argument(
        "--bodies",
        choices=("stand-in", "anny"),
        help="who is in the pictures, as --set bodies=...; anny: people of another body model, of all ages; their "
        "labels are the stand-in body fitted to what is seen (needs the extra anny)",
    )
    parser.add_argument(
        "--set",
        dest="options",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="change one option of the difficulty, e.g. --set leak=5; may be given several times",
    )
    add_heights_option(parser)
    add_body_option(parser)
    parser.add_argument("--list", action="store_true", help="print difficulties and options, write nothing")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    from dto_pipeline.config import STAND_IN_BODY
    from dto_pipeline.lab.crowd_files import write_synth
    from dto_pipeline.lab.difficulty import choose_difficulty, describe_difficulties
    from dto_pipeline.models.body import load_body

    if arguments.list:
        print(describe_difficulties())
        return 0
    if arguments.out is None:
        raise DtoError("name a folder with -o DIR (or ask for --list)")
    if arguments.bodies is not None:
        arguments.options.append(f"bodies={arguments.bodies}")
    kind = choose_difficulty(arguments.difficulty, arguments.options, arguments.heights)
    torch.set_num_threads(1)  # small tensors: more threads are slower
    body, show = load_body(arguments.body or STAND_IN_BODY), None if arguments.quiet else show_progress
    data = write_synth(local_place(arguments.out), kind, arguments.images, arguments.seed, body, show)
    written = "written" if data.created else "was there already"
    print(f"{data.root}: {data.images} images, {data.persons} people, difficulty {kind.name}, {written}")
    return 0
