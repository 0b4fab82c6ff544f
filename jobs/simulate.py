"""What deaths of workers and shard sizes cost a run on many workers, in virtual time, before anybody pays for them.

    python jobs/simulate.py --images 10000000 --workers 512 --mtbf 2h --image-s 0.3

Lets the real driver loop work through a run with pretended workers whose time is virtual and who die at random, once
per shard size. Expect, in seconds, a table of throughput, lost work and the loop's own CPU time (real; what Ray costs
is not in it), and which shard size to take. The run section of the config (--set run.max_attempts=5) counts as in a
real run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from dto_pipeline.commands.options import add_config_options, positive, read_config
from dto_pipeline.data.files import write_json_atomic
from dto_pipeline.lab.simulation import simulate_sizes
from dto_pipeline.lab.virtual_pool import Scenario

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZES = "50,200,1000,5000"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parse(argv)
    scenario = Scenario(
        images=arguments.images,
        workers=arguments.workers,
        mtbf_s=arguments.mtbf,
        shard_images=min(arguments.shard_images),
        image_s=arguments.image_s,
        queue_s=arguments.queue_s,
        start_s=arguments.start_s,
        spread=arguments.spread,
        preempted=arguments.preempted,
        hanging=arguments.hanging,
        poison=arguments.poison,
        seed=arguments.seed,
    )
    found = simulate_sizes(scenario, arguments.shard_images, read_config(arguments).run)
    print(found.as_table())
    if arguments.json:
        write_json_atomic(Path(arguments.json), found.to_json())
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=positive, default=10_000_000, metavar="N", help="images of the run (10000000)")
    parser.add_argument("--workers", type=positive, default=512, metavar="N", help="workers, one per GPU (512)")
    parser.add_argument(
        "--mtbf",
        type=duration,
        default="2h",
        metavar="TIME",
        help="mean time between the failures of one worker: 90s, 30m, 2h, 1d or never (2h)",
    )
    parser.add_argument(
        "--shard-images", type=sizes, default=_SIZES, metavar="N[,N2..]", help=f"shard sizes to compare ({_SIZES})"
    )
    parser.add_argument("--image-s", type=float, default=0.04, metavar="S", help="work of one image in seconds (0.04)")
    parser.add_argument(
        "--queue-s", type=float, default=0.0, metavar="S", help="wait of a worker for its CPUs and GPUs in seconds (0)"
    )
    parser.add_argument("--start-s", type=float, default=60.0, metavar="S", help="start-up of a worker in seconds (60)")
    parser.add_argument(
        "--hanging", type=float, default=0.0, metavar="X", help="part of workers that hang while they start (0)"
    )
    parser.add_argument(
        "--spread", type=float, default=0.1, metavar="X", help="shards differ by up to this part of their time (0.1)"
    )
    parser.add_argument(
        "--preempted", type=float, default=0.0, metavar="X", help="part of deaths that are known pre-emptions (0)"
    )
    parser.add_argument("--poison", type=int, default=0, metavar="N", help="shards that kill whoever tries them (0)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of all chance (0)")
    parser.add_argument("--json", metavar="FILE", help="write all numbers to FILE too")
    add_config_options(parser)
    return parser.parse_args(argv)


def duration(text: str) -> float:
    """Type of an option that is a time: ``90``, ``90s``, ``30m``, ``2h``, ``1d``; ``never`` = infinity. Seconds."""
    if text == "never":
        return float("inf")
    number, unit = (text[:-1], _UNITS_S[text[-1]]) if text and text[-1] in _UNITS_S else (text, 1.0)
    try:
        return float(number) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90s, 30m, 2h, 1d or never") from None


def sizes(text: str) -> list[int]:
    """Type of an option that lists counts: ``200`` or ``50,200,1000``."""
    try:
        return [positive(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 50,200,1000") from None


if __name__ == "__main__":
    raise SystemExit(main())
