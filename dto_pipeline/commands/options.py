"""Options that several verbs share."""

from __future__ import annotations

import argparse
import math
import textwrap

from dto_pipeline.config import PipelineConfig, load_config


class Paragraphs(argparse.HelpFormatter):
    """Wraps descriptions and epilogs line by line: breaks and indents are the author's, names stay in one piece."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_wrap(line, width, indent) for line in text.splitlines())


def _wrap(line: str, width: int, indent: str) -> str:
    """One line of text as several of at most `width` characters; what goes over hangs two further in."""
    first = indent + line[: len(line) - len(line.lstrip())]
    further = first + "  " if first else ""
    return textwrap.fill(line.strip(), width, initial_indent=first, subsequent_indent=further, break_on_hyphens=False)


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


def measure(text: str) -> float:
    """Type of an option that measures something: a number above 0, and not infinite."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def share(text: str) -> float:
    """Type of an option that is a part of a whole, or a score: a number from 0 to 1."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1 (0.05 is 5 %)")
    return number


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
    """`--manifest` and `--body` of a verb that looks at a run."""
    parser.add_argument("--manifest", metavar="FILE", help="the run's manifest, where it was moved")
    parser.add_argument("--body", metavar="NPZ", help="the run's body model, where it was moved")


def read_config(arguments: argparse.Namespace) -> PipelineConfig:
    """The config that `add_config_options` describe."""
    return load_config(arguments.config, arguments.overrides)
