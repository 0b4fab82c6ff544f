"""`dto train`: train a metric multi-person mesh network on labels."""

from __future__ import annotations

import argparse
from functools import partial

from dto_pipeline.commands.options import add_overrides, not_negative
from dto_pipeline.commands.output import local_place


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "train",
        help="train a multi-person mesh network on labels; resumes by itself",
        description="Trains a network on labels and writes checkpoints/ (the newest two), metrics.csv, evaluation.csv "
        "and train.json. Started again, it goes on from the newest checkpoint that can be read. CONFIG.yaml names the "
        "labels (data.labels: folders of runs or exports) and options: see jobs/train.yaml and docs/training.md. "
        "--workers N shares every step among N processes of Ray Train, each with data.batch_images images and, with "
        "--set loop.gpu=true, a GPU. Then: dto predict DIR IMAGES -o PREDICTED.",
    )
    parser.add_argument(
        "config",
        metavar="CONFIG.yaml",
        help="options by section; all of them with units and defaults: dto_pipeline/train/config.py",
    )
    parser.add_argument(
        "-o", "--out", required=True, metavar="DIR", help="the training's folder, local; a cluster's machines share it"
    )
    add_overrides(parser, "loss.preset=paper")
    parser.add_argument(
        "--init",
        metavar="FILE",
        help="same as --set loop.init=FILE: first weights, from a released MA-HMR or SAT-HMR file (.bin, .pth) or a "
        "checkpoint or folder of a training; sizes that the config does not name are those of the file",
    )
    parser.add_argument(
        "--workers", type=not_negative, metavar="N", help="same as --set loop.workers=N; 0 = without Ray"
    )
    parser.add_argument(
        "--address", default="local", help="Ray cluster: local (default), auto, HOST:PORT, ray://HOST:PORT"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.commands.training_data import check_bodies, count_uncertain, open_label_sets
    from dto_pipeline.config import require_body
    from dto_pipeline.errors import DtoError
    from dto_pipeline.train.checkpoint import sizes_to_begin_with
    from dto_pipeline.train.config import load_train_config
    from dto_pipeline.train.dataset import open_stream
    from dto_pipeline.train.learner import MEASURES
    from dto_pipeline.train.loop import LOCK_FILE, train_network
    from dto_pipeline.train.losses import WEIGHTS

    for key in ("workers", "init"):
        if (value := getattr(arguments, key)) is not None:
            arguments.overrides.append(f"loop.{key}={value}")
    out = local_place(arguments.out)
    if out.is_dir() and any(out.iterdir()) and not (out / LOCK_FILE).exists():
        raise DtoError(f"{out} holds other files and no training; name a new folder (-o)")
    config = load_train_config(arguments.config, arguments.overrides, lambda init: sizes_to_begin_with(out, init))
    require_body(config.body)
    if not any(getattr(config.loss, option) for option in WEIGHTS.values()):
        raise DtoError("all weights of section loss are 0, so nothing would be learnt; set one of them above 0")
    sets = open_label_sets(config.data)
    check_bodies(sets, config.body)
    print("".join(f"{line}\n" for line in count_uncertain(sets, config.data)), end="")
    if not config.data.holdout:
        print("nothing is evaluated, because no images are held out (data.holdout is 0)")
    source = partial(open_stream, tuple(sets), config)
    if config.loop.workers:
        from dto_pipeline.config import RunConfig
        from dto_pipeline.run.ray_start import start_ray

        start_ray(RunConfig(workers=config.loop.workers), arguments.address)
    measures = train_network(config, source, out, progress=not arguments.quiet)
    for name, title in MEASURES.items():
        if name in measures:
            print(f"{measures[name]:10.4f}  {title}")
    print(f"{arguments.out}: {config.loop.steps} steps done; to predict: dto predict {arguments.out} IMAGES -o DIR")
    return 0
