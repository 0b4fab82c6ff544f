"""Disturb runs in every known way, a hundred random kills among them, and compare with undisturbed runs.

    python jobs/chaos.py                        all scenarios, 100 random kills; under an hour on two busy cores
    python jobs/chaos.py --only disk_full       one scenario (may be given again and again)
    python jobs/chaos.py --kills 300 --seed 5   more random kills, at other moments

Writes synthetic crowds once, runs them undisturbed, then plays each scenario on a run of its own: disturb, resume until
done, compare. Expect `yes` in every line, hence exit code 0: labels byte for byte those of the undisturbed run, every
image once, receipts that hold, no temporary file, no process left. Every start under random kills has another
`run.batch_images` and `run.torch_threads`, and shards are small enough that workers die twice at the same one, which
is then done image by image: the other images of a batch may not change a bit. Prints a table and writes it as JSON
(OUT/chaos.json). Half of the random kills hit runs on Ray (workers, raylets, drivers), half the one process of a run
without Ray. A scenario this machine cannot play (nothing may be mounted) is `skipped` with the reason. Linux.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the scenarios lie with the tests

from tests.chaos.arena import build_arena, build_demo_manifest
from tests.chaos.play import RANDOM, SCENARIOS, as_table, play

IMAGES, SHARD_IMAGES = 36, 4  # of the synthetic crowds, two to ten people each: nine small shards


def main() -> int:
    arguments = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))  # through the scenarios' own cleaning up
    deadline = time.monotonic() + arguments.seconds
    out = arguments.out.absolute()
    manifest = build_demo_manifest(out / "data", IMAGES, SHARD_IMAGES)
    arena = build_arena(manifest, out, arguments.workers)
    names = arguments.only or list(SCENARIOS)
    random = [name for name in names if name in RANDOM]
    outcomes = []
    for name in names:
        if time.monotonic() > deadline:
            print(f"{name} and what follows are left out: {arguments.seconds:.0f} s are over")
            break
        kills = math.ceil(arguments.kills / len(random)) if name in random else 0
        outcomes.append(play(name, arena, kills=kills, seed=arguments.seed, until=deadline))
        print(as_table(outcomes[-1:], header=len(outcomes) == 1), flush=True)
    print(f"{sum(outcome.kills for outcome in outcomes)} kills")
    report = {"seed": arguments.seed, "outcomes": [outcome.to_json() for outcome in outcomes]}
    (out / "chaos.json").write_text(json.dumps(report, indent=2) + "\n")
    return int(any(outcome.complaints for outcome in outcomes))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path("out/chaos"), metavar="DIR", help="folder to work in")
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="random kills (100)")
    parser.add_argument("--seconds", type=float, default=float("inf"), metavar="S", help="begin nothing new after this")
    parser.add_argument("--seed", type=int, default=0, help="of the random kills (0)")
    parser.add_argument("--only", action="append", choices=sorted(SCENARIOS), metavar="SCENARIO", help="one of them")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="Ray workers of each run (2)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
