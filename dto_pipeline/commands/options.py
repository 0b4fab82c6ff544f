"""Options that several verbs share."""

from __future__ import annotations

import argparse

from dto_pipeline.config import PipelineConfig, load_config


def positive(text: str) -> int:
    """Type of an option that counts something: a whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def not_negative(text: str) -> int:
    """Type of an option that counts something and may be 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} is less than 0")
    return number


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `--set room.key=value`, read by `read_config`."""
    parser.add_argument("--config", metavar="YAML", help="config file; rooms and keys as in dto_pipeline/config.py")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="ROOM.KEY=VALUE",
        action="append",
        default=[],
        help="change one knob, e.g. --set run.workers=8; may be given several times",
    )


def read_config(arguments: argparse.Namespace) -> PipelineConfig:
    """The config that `add_config_options` describe."""
    return load_config(arguments.config, arguments.overrides)
