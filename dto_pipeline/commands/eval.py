"""`dto eval`: how accurate labels, predictions and solvers are, with intervals and counts of images and people."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dto_pipeline.commands.options import (
    add_body_option,
    add_config_options,
    add_heights_option,
    not_negative,
    positive,
    read_config,
)
from dto_pipeline.commands.output import local_place
from dto_pipeline.config import STAND_IN_BODY
from dto_pipeline.config_tree import expect
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import open_regular

if TYPE_CHECKING:
    from dto_pipeline.data.people import People
    from dto_pipeline.evaluate.evaluation import Evaluation
    from dto_pipeline.models.body import BodyModel

Option = tuple[str, dict[str, Any]]  # name and arguments of argparse
_PUBLISHED = (
    "People are matched as in the published script, and `dto golden` shows that the numbers equal recorded ones; `dto "
    "eval meshes` measures by the field's own definitions."
)
_JOINTS = (
    "Joints of FOUND are regressed from its meshes. Images that FOUND does not have are left out, and their number is "
    "printed. docs/evaluation.md lists files and definitions."
)
_WHAT = (
    "what is measured: a run, an export or its files (Parquet), CameraHMR's or MA-HMR's npz, or a prediction file (npz "
    "or Parquet)"
)
_FOUND: Option = ("found", {"metavar": "FOUND", "help": _WHAT})
_TRUTH: Option = ("truth", {"metavar": "TRUTH", "help": "the same kinds, or a folder written by `dto synth`"})
_H36M: Option = (
    "--regressor",
    {"required": True, "metavar": "NPY", "help": "J_regressor_h36m.npy (17, V) of the body model"},
)


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("eval", help="measure labels, predictions and solvers against the truth")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    corrected = (
        "reference: the published metric with its faults; corrected (default): without six of them (index, pckh, box, "
        "rank, budget, detection), which docs/evaluation.md explains"
    )
    _add_action(
        actions,
        "rh",
        _evaluate_rh,
        "RelativeHuman: PCDR at 0.2 m, mPCKh at 0.6, precision, recall, F1",
        "Compares the depth order and the joints of predicted bodies with RelativeHuman's annotations.",
        ("predictions", {"metavar": "PREDICTIONS", "help": _WHAT}),
        ("--annotations", {"required": True, "metavar": "PLACE", "help": "*_annots.npz, or their folder"}),
        ("--split", {"default": "test", "choices": ("train", "val", "test"), "help": "file of the folder (test)"}),
        ("--mode", {"default": "corrected", "choices": ("reference", "corrected"), "help": corrected}),
        ("--regressor", {"metavar": "NPY", "help": "J_regressor_extra.npy (9, 6890) of the body; needed with --body"}),
    )
    _add_action(
        actions,
        "synthetic",
        _evaluate_synthetic,
        "labels against the truth of a data set made by `dto synth`",
        "Compares distances, depth order and heights of the same people before and after a run with the truth: of all "
        "people, and of people of accepted images. The same people have the same label row; predictions and files in "
        "Metric-Aware HMR's layout have none, and are matched by joints and boxes in the image.",
        ("labels", {"metavar": "LABELS", "help": _WHAT}),
        ("--truth", {"required": True, "metavar": "DIR", "help": "folder written by `dto synth`, or its truth.npz"}),
    )
    rows = "match people by joints and boxes in the image (default), or by the label row that both sides name"
    values = {
        "default": "after",
        "choices": ("after", "before"),
        "help": "FOUND after (default) or before its run",
    }
    _add_action(
        actions,
        "meshes",
        _evaluate_meshes,
        "MPJPE, PA-MPJPE, MVE, absolute and pairwise depth, F1, NMJE, NMVE, field of view",
        "Compares bodies with true bodies of the same images. People are matched by joints and boxes in the image (IoU "
        "of at least 0.1), or by label row.",
        _FOUND,
        _TRUTH,
        ("--match", {"default": "boxes", "choices": ("boxes", "rows"), "help": rows}),
        ("--values", values),
    )
    other = {"metavar": "NPZ", "help": "body model of the truth, where it is another one (gendered)"}
    title = "3DPW, Hi4D as MA-HMR measures them: MPJPE and PA-MPJPE of 14 regressed joints, MVE, recall"
    sides = (_FOUND, _TRUTH, ("--truth-body", other))
    _add_action(actions, "3dpw", _evaluate_meshes, title, _PUBLISHED, *sides, _H36M)
    title = "AGORA, BEDLAM as MA-HMR measures them: F1, MPJPE, MVE, NMJE, NMVE"
    counted = {"metavar": "NPY", "help": "body_verts_smpl.npy: numbers of the vertices that are compared (all)"}
    _add_action(actions, "agora", _evaluate_meshes, title, _PUBLISHED, *sides, ("--vertices", counted))
    title = "MuPoTS-3D: 3DPCK and AUC of all and of matched people"
    root = {"metavar": "ROOT", "help": "its folder, with TS1 .. TS20"}
    _add_action(actions, "mupots", _evaluate_joints, title, _JOINTS, _FOUND, ("root", root), _H36M)
    title = "CMU Panoptic: MPJPE of the nearest prediction, MRPE, per sequence"
    root = {"metavar": "ROOT", "help": "folder of its sequences"}
    usual = {"nargs": "+", "default": ["00_16", "00_30"], "metavar": "NAME", "help": "HD cameras (00_16 00_30)"}
    _add_action(
        actions, "panoptic", _evaluate_joints, title, _JOINTS, _FOUND, ("root", root), _H36M, ("--cameras", usual)
    )
    _add_benchmark(actions)


def _add_action(
    actions: argparse._SubParsersAction,
    name: str,
    evaluate: Callable[[argparse.Namespace, BodyModel], Evaluation],
    title: str,
    more: str,
    *options: Option,
) -> None:
    """An action with its own options and those that all but the benchmark share."""
    parser = actions.add_parser(name, help=title, description=f"{title[0].upper()}{title[1:]}. {more}")
    for option, details in options:
        parser.add_argument(option, **details)
    add_body_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write measures, intervals and counts as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write one row per image: its measures and their sums")
    draws = "bootstrap samples of images for the intervals (1000); 0 = no intervals"
    parser.add_argument("--resamples", type=not_negative, default=1000, metavar="N", help=draws)
    parser.add_argument("--seed", type=not_negative, default=0, help="random seed of the samples (0)")
    parser.set_defaults(run=_run, evaluate=evaluate)


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
    from dto_pipeline.models.body import load_body

    evaluation = arguments.evaluate(arguments, load_body(arguments.body))
    evaluation = replace(evaluation, resamples=arguments.resamples, seed=arguments.seed)
    print(evaluation.as_table())
    if arguments.json:
        write_json_atomic(Path(arguments.json), evaluation.to_json())
    if arguments.csv:
        write_bytes_atomic(Path(arguments.csv), evaluation.as_csv().encode())
    recalls = [column["recall"].value for column in evaluation.estimates.values() if "recall" in column]
    if recalls and not any(recalls):
        advice = "are they of these images, in their pixels, in metres and radians, and of this body?"
        print(f"dto eval: nobody of the truth was found among the people that were measured; {advice}", file=sys.stderr)
        return 1
    return 0


def _evaluate_rh(arguments: argparse.Namespace, body: BodyModel) -> Evaluation:
    from importlib.resources import files

    from dto_pipeline.data.sources.relative_human import read_annotations
    from dto_pipeline.evaluate.rh_evaluation import evaluate_rh
    from dto_pipeline.models.body import read_regressor

    path = Path(arguments.annotations)
    path = path / f"{arguments.split}_annots.npz" if path.is_dir() else path
    annotations = read_annotations(path)
    if arguments.body != STAND_IN_BODY and not arguments.regressor:
        raise DtoError("--body needs --regressor: neck and head top are regressed from that model's vertices")
    shipped = files("dto_pipeline.assets") / "J_regressor_extra.npy"
    regressor = read_regressor(arguments.regressor or str(shipped), body, "--regressor")
    for problem in annotations.problems:
        print(f"{path}, {problem.image}, {problem.reason}; taken as unknown")
    return evaluate_rh(_read_found(arguments.predictions), annotations.images, body, regressor, arguments.mode)


def _read_found(path: str, values: str = "after", by_row: bool = False) -> People:
    """The people to measure, each once. Raises: DtoError: there are people, and none can be used."""
    from dto_pipeline.data.people import read_people

    found = read_people(path, values, by_row).without_repeats()
    if found.num_people and not found.usable.any():
        raise DtoError(
            f"{path}: none of its {found.num_people} people can be used: their numbers are not finite or too large, or "
            "they are behind the camera; expected radians and metres"
        )
    return found


def _evaluate_synthetic(arguments: argparse.Namespace, body: BodyModel) -> Evaluation:
    from dto_pipeline.data.label_files import find_label_files
    from dto_pipeline.data.people import FileKind, read_people, recognise
    from dto_pipeline.evaluate.mesh_evaluation import with_true_rows
    from dto_pipeline.evaluate.placements import evaluate_synthetic

    labels: Any = arguments.labels
    kind = recognise(labels)
    if kind is FileKind.LABELS:
        labels = find_label_files(labels)  # once, as a run that goes on gets more of them
    truth, placed = read_people(arguments.truth), {"after": replace(read_people(labels), source=arguments.labels)}
    if kind in (FileKind.PREDICTIONS, FileKind.MA_HMR) or (placed["after"].row < 0).all():
        placed["after"] = with_true_rows(placed["after"], truth, body)
    if (placed["after"].status != "").any():
        before = replace(read_people(labels, "before"), source=arguments.labels, row=placed["after"].row)
        placed = {"before": before, **placed}
    else:
        placed = {"labels": placed["after"]}
    return evaluate_synthetic(placed, truth, body)


def _evaluate_meshes(arguments: argparse.Namespace, body: BodyModel) -> Evaluation:
    from dto_pipeline.array_files import read_npy
    from dto_pipeline.data.people import read_people
    from dto_pipeline.evaluate.mesh_evaluation import Bodies, evaluate_meshes
    from dto_pipeline.models.body import load_body, read_regressor

    given, regressor, vertices = vars(arguments), None, None
    if path := given.get("regressor"):
        regressor = read_regressor(path, body, "--regressor", "J_regressor_h36m.npy", joints=17)
    if path := given.get("vertices"):
        try:
            with open_regular(path) as stream:
                vertices = read_npy(
                    stream,
                    lambda _, shape, kind: expect(kind.kind in "iu" and len(shape) == 1 <= shape[0], f"{kind} {shape}"),
                )
            expect(0 <= vertices.min() <= vertices.max() < body.num_vertices, "numbers beyond them")
        except (OSError, ValueError) as error:
            raise DtoError(f"{path} holds no numbers of vertices 0 .. {body.num_vertices - 1} ({error})") from error
    truth_body = load_body(arguments.truth_body) if given.get("truth_body") else body
    by_row = given.get("match") == "rows"
    found = _read_found(arguments.found, given.get("values", "after"), by_row)
    truth = read_people(arguments.truth, by_row=by_row).without_repeats()
    return evaluate_meshes(found, truth, Bodies(body, truth_body, regressor, vertices), arguments.action, by_row)


def _evaluate_joints(arguments: argparse.Namespace, body: BodyModel) -> Evaluation:
    from dto_pipeline.data.joint_truth import read_mupots, read_panoptic
    from dto_pipeline.evaluate.joint_evaluation import evaluate_joints
    from dto_pipeline.models.body import read_regressor

    regressor = read_regressor(arguments.regressor, body, "--regressor", "J_regressor_h36m.npy", joints=17)
    found, is_mupots = _read_found(arguments.found), arguments.action == "mupots"
    truth = read_mupots(arguments.root) if is_mupots else read_panoptic(arguments.root, arguments.cameras)
    return evaluate_joints(found, truth, body, regressor, arguments.action)


def _add_benchmark(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "benchmark",
        help="labels, height prior and both solvers on every difficulty of `dto synth`; parts of them switched off",
        description="Writes a page and a JSON file (docs/benchmark.md is such a page). The crowds are those of `dto "
        "synth`, evaluated in memory, with 95 % intervals; then parts of the optimiser are switched off one at a time. "
        "Seeds on which the joint solver was tuned are refused. Three difficulties need the extra anny.",
    )
    parser.add_argument("-o", "--out", default="out/benchmark", metavar="DIR", help="folder to write (out/benchmark)")
    parser.add_argument("--images", type=positive, default=48, metavar="N", help="per difficulty (48)")
    parser.add_argument("--seed", type=not_negative, default=201, help="random seed of the crowds (201)")
    parser.add_argument(
        "--difficulty", action="append", metavar="NAME", help="only this difficulty; may be given several times (all)"
    )
    parser.add_argument("--no-ablation", action="store_true", help="do not switch parts off")
    parser.add_argument(
        "--golden", type=Path, metavar="DIR", help="add the recorded images of a folder as tests/golden"
    )
    add_heights_option(parser)
    add_config_options(parser)
    parser.set_defaults(run=_run_benchmark)


def _run_benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic
    from dto_pipeline.lab.benchmark import BenchmarkSettings, as_page, errors_section, measure

    torch.set_num_threads(1)  # small tensors: more threads are slower
    settings = BenchmarkSettings(
        images=arguments.images,
        seed=arguments.seed,
        heights=arguments.heights,
        difficulties=tuple(arguments.difficulty or ()),
        ablation=not arguments.no_ablation,
        recorded=arguments.golden,
    )
    out, report = local_place(arguments.out), measure(settings, read_config(arguments))
    write_bytes_atomic(out / "benchmark.md", as_page(report).encode())
    write_json_atomic(out / "benchmark.json", report.to_json())
    print("\n".join([*errors_section(report), "", f"{arguments.out}/benchmark.md and .json written"]))
    return 0
