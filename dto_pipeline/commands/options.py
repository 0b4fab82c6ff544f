"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar

from dto_pipeline.config import PipelineConfig, load_config

N = TypeVar("N", int, float)


def _number(name: str, kind: Callable[[str], N], holds: Callable[[N], bool], expected: str) -> Callable[[str], N]:
    """Type of an option that takes a number; argparse shows the type's name if the text is not a number at all."""

    def read(text: str) -> N:
        number = kind(text)
        if not holds(number):
            raise argparse.ArgumentTypeError(f"{text} is not {expected}")
        return number

    read.__name__ = name
    return read


positive = _number("positive", int, lambda number: number >= 1, "a whole number of at least 1")
not_negative = _number("not_negative", int, lambda number: number >= 0, "a whole number of at least 0")
measure = _number("measure", float, lambda number: 0 < number < math.inf, "a number above 0")
share = _number("share", float, lambda number: 0 <= number <= 1, "from 0 to 1 (0.05 is 5 %)")


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """`--config FILE` and `--set section.key=value`, read by `read_config`."""
    parser.add_argument("--config", metavar="YAML", help="config file; sections and keys as in dto_pipeline/config.py")
    add_overrides(parser, "run.workers=8")


def add_overrides(parser: argparse.ArgumentParser, example: str) -> None:
    """`--set section.key=value`, gathered as `overrides`."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help=f"change one option, e.g. --set {example}; may be given several times",
    )


def add_body_option(parser: argparse.ArgumentParser) -> None:
    """`--body NPZ` of a verb that has no config to name it."""
    parser.add_argument(
        "--body", default="", metavar="NPZ", help="body model, made by dto body import; demo = the free stand-in"
    )


def add_heights_option(parser: argparse.ArgumentParser) -> None:
    """`--heights` of synthetic crowds."""
    parser.add_argument(
        "--heights",
        choices=("independent", "priors"),
        default="independent",
        help="true heights: published growth charts (default), or the method's own priors, which flatters it",
    )


def add_moved_options(parser: argparse.ArgumentParser) -> None:
    """`--manifest` and `--body` of a verb that reads a run."""
    parser.add_argument("--manifest", metavar="FILE", help="the run's manifest, where it was moved")
    parser.add_argument("--body", metavar="NPZ", help="the run's body model, where it was moved")


def read_config(arguments: argparse.Namespace) -> PipelineConfig:
    """The config that `add_config_options` describe."""
    return load_config(arguments.config, arguments.overrides)
