"""`dto eval solvers`, `benchmark` and `ablation`: solvers on synthetic crowds with known truth, made on the spot."""

from __future__ import annotations

import argparse
from pathlib import Path

from dto_pipeline.commands.options import add_config_options, add_heights_option, positive, read_config
from dto_pipeline.commands.output import local_place


def add_solver_parsers(actions: argparse._SubParsersAction) -> None:
    """The actions of `dto eval` that make their own scenes."""
    _add_solvers(actions)
    _add_benchmark(actions)
    _add_ablation(actions)


def _add_solvers(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "solvers",
        help="published and joint solver on fourteen kinds of synthetic crowds",
        description="Writes a page, JSON and two pictures (docs/solver_comparison.md is one). The joint solver's "
        "numbers were tuned on seeds 1 and 2, which are refused. Three kinds are people of Anny (extra anny).",
    )
    parser.add_argument("-o", "--out", default="out/solvers", metavar="DIR", help="folder of the report (out/solvers)")
    parser.add_argument("--images", type=positive, default=112, metavar="N", help="per set (112)")
    parser.add_argument("--seed", type=int, default=101, help="of the crowds (101)")
    parser.add_argument("--golden", type=Path, metavar="DIR", help="folder of recorded cases to add, as tests/golden")
    add_config_options(parser)
    parser.set_defaults(run=_run_solvers)


def _add_benchmark(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "benchmark",
        help="labels, height prior and both solvers on every difficulty of `dto synth`, and the ablation",
        description="The table of docs/benchmark.md: crowds as `dto synth` writes them, evaluated in memory, with "
        "95 % intervals over images. Seeds 1 and 2, on which the joint solver was tuned, are refused.",
    )
    _add_scenes(parser, "out/benchmark")
    parser.set_defaults(run=_run_benchmark, parts=("table", "ablation"))


def _add_ablation(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "ablation",
        help="parts of the optimiser switched off one at a time, on the same crowds",
        description="Age prior, gender prior, internal depth bound and ground evidence, each off alone; the same "
        "table as the second half of `dto eval benchmark`.",
    )
    _add_scenes(parser, "out/ablation")
    parser.set_defaults(run=_run_benchmark, parts=("ablation",))


def _add_scenes(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("-o", "--out", default=out, metavar="DIR", help=f"folder to write ({out})")
    parser.add_argument("--images", type=positive, default=48, metavar="N", help="per difficulty (48)")
    parser.add_argument("--seed", type=int, default=201, help="of the crowds (201)")
    parser.add_argument(
        "--difficulty", action="append", metavar="NAME", help="only this one; may be given several times (all)"
    )
    add_heights_option(parser)
    add_config_options(parser)


def _run_solvers(arguments: argparse.Namespace) -> int:
    import torch

    from dto_pipeline.lab.compare_solvers import compare_solvers
    from dto_pipeline.lab.solver_report import as_table

    torch.set_num_threads(1)  # small tensors: more threads are slower
    results = compare_solvers(
        local_place(arguments.out),
        arguments.images,
        arguments.seed,
        golden=arguments.golden,
        config=read_config(arguments),
    )
    print(f"{as_table(results)}\n\n{arguments.out}/solver_comparison.md and .json written")
    return 0


def _run_benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from dto_pipeline.lab.benchmark import BenchmarkSettings
    from dto_pipeline.lab.benchmark_page import as_text, run_benchmark

    torch.set_num_threads(1)  # small tensors: more threads are slower
    settings = BenchmarkSettings(
        images=arguments.images,
        seed=arguments.seed,
        heights=arguments.heights,
        difficulties=tuple(arguments.difficulty or ()),
        parts=arguments.parts,
    )
    report = run_benchmark(local_place(arguments.out), settings, read_config(arguments))
    print(f"{as_text(report)}\n\n{arguments.out}/benchmark.md and .json written")
    return 0
