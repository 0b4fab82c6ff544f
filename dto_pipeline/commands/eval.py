"""`dto eval`: how right labels, predictions and solvers are, with intervals and with everybody accounted for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

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
from dto_pipeline.errors import DtoError
from dto_pipeline.reading import open_regular

if TYPE_CHECKING:
    import numpy as np

    from dto_pipeline.data.people import People
    from dto_pipeline.evaluate.evaluation import Evaluation
    from dto_pipeline.models.body import BodyModel

_WHAT = "a run, an export or its files (Parquet), CameraHMR's or MA-HMR's npz, or a prediction file (npz or Parquet)"
_TRUTH = "the same kinds, or a folder written by `dto synth`"
_CORRECTIONS = """\
what `corrected` corrects (docs/evaluation.md says more):
  index      a person without visible joints no longer shifts the layers and ages of the others
  pckh       people with fewer than two visible joints are left out of mPCKh instead of counting -1
  box        boxes span visible joints only; unlabelled ones at (-2, -2) do not stretch them
  rank       pairs are matched by root mean square joint distance, not by a norm that grows with the joints seen
  budget     a pair that does not overlap uses up nothing and no longer ends the matching early
  detection  true positives are the matched people, not predictions minus missed people
"""


_PUBLISHED = (
    "Matching as published: by ascending spectral norm, with its budget of predictions; `dto golden` proves it equal "
    "to the recorded numbers, `dto eval meshes` has the field's own."
)
_JOINTS = (
    "Joints of FOUND are regressed from its meshes; images that FOUND does not have are left out and counted. "
    "docs/evaluation.md tells files and definitions."
)
_PROTOCOLS = (
    ("3dpw", "3DPW, Hi4D as MA-HMR measures them: MPJPE and PA-MPJPE of 14 regressed joints, MVE, recall", ""),
    ("agora", "AGORA, BEDLAM as MA-HMR measures them: F1, MPJPE, MVE, NMJE, NMVE", ""),
    ("mupots", "MuPoTS-3D: 3DPCK and AUC of all and of matched people", "its folder, with TS1 .. TS20"),
    ("panoptic", "CMU Panoptic: MPJPE of the nearest prediction, MRPE, per sequence", "folder of its sequences"),
)  # name, title, where the truth is no file of people


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("eval", help="measure labels, predictions and solvers against the truth")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    title = "RelativeHuman: PCDR at 0.2 m, mPCKh at 0.6, precision, recall, F1"
    text = "Order in depth and joints of predicted bodies against RelativeHuman's annotations."
    parser = _add_action(actions, "rh", title, text, _run_rh, _CORRECTIONS, predictions=f"predicted people: {_WHAT}")
    place = "*_annots.npz, or their folder (see --split)"
    parser.add_argument("--annotations", required=True, metavar="PLACE", help=place)
    parser.add_argument("--split", default="test", choices=("train", "val", "test"), help="file of the folder (test)")
    parser.add_argument(
        "--mode",
        default="corrected",
        choices=("reference", "corrected"),
        help="reference: equal to the published metric, faults included; corrected (default): see below",
    )
    parser.add_argument(
        "--regressor", metavar="NPY", help="J_regressor_extra.npy (9, 6890) of the body model; needed with --body"
    )
    title = "labels against the truth of a data set made by `dto synth`"
    text = (
        "Distances, order in depth and heights of the same people (by label row), before and after the run, over all "
        "people and over people of accepted images."
    )
    parser = _add_action(actions, "synthetic", title, text, _run_synthetic, labels=f"what is judged: {_WHAT}")
    parser.add_argument("--truth", required=True, metavar="DIR", help="folder written by `dto synth`, or its truth.npz")
    _add_meshes(actions)
    _add_protocols(actions)
    _add_benchmark(actions)


def _add_action(
    actions: argparse._SubParsersAction,
    name: str,
    title: str,
    description: str,
    run: Callable[[argparse.Namespace], int],
    epilog: str = "",
    **places: str,
) -> argparse.ArgumentParser:
    """An action with its places (name -> help) and the options that all but the benchmark share."""
    parser = actions.add_parser(
        name,
        help=title,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter,
    )
    for place, help_text in places.items():
        parser.add_argument(place, metavar=place.upper(), help=help_text)
    add_body_option(parser)
    parser.add_argument("--json", metavar="FILE", help="write measures, intervals and counts as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write one row per image: its measures and the sums behind them")
    draws = "draws of images behind the intervals (1000); 0 = none"
    parser.add_argument("--resamples", type=not_negative, default=1000, metavar="N", help=draws)
    parser.add_argument("--seed", type=not_negative, default=0, help="of those draws (0)")
    parser.set_defaults(run=run)
    return parser


def _add_meshes(actions: argparse._SubParsersAction) -> None:
    title = "MPJPE, PA-MPJPE, MVE, absolute and pairwise depth, F1, NMJE, NMVE, field of view"
    text = (
        "Bodies against true bodies of the same images; both sides in any layout this project reads. People are "
        "matched by their joints and boxes in the image (IoU of at least 0.1), or by label row."
    )
    places = {"found": f"what is judged: {_WHAT}", "truth": _TRUTH}
    parser = _add_action(actions, "meshes", title, text, _run_meshes, **places)
    parser.add_argument(
        "--match",
        default="boxes",
        choices=("boxes", "rows"),
        help="who is who: by joints and boxes in the image (default), or by the label row both sides name",
    )
    parser.add_argument(
        "--values",
        default="after",
        choices=("after", "before"),
        help="labels of FOUND after the run (default) or before",
    )


def _add_protocols(actions: argparse._SubParsersAction) -> None:
    for name, title, folder in _PROTOCOLS:
        run, more = (_run_joints, _JOINTS) if folder else (_run_protocol, _PUBLISHED)
        places = {"found": f"what is judged: {_WHAT}", **({"root": folder} if folder else {"truth": _TRUTH})}
        parser = _add_action(actions, name, title, f"{title}. {more}", run, **places)
        parser.set_defaults(protocol=name)
        if not folder:
            other = "the truth's body model where it is another one (gendered)"
            parser.add_argument("--truth-body", metavar="NPZ", help=other)
        if name == "agora":
            parser.add_argument("--vertices", metavar="NPY", help="body_verts_smpl.npy: the vertices that count (all)")
        else:
            needed = "J_regressor_h36m.npy (17, V) of the body model"
            parser.add_argument("--regressor", required=True, metavar="NPY", help=needed)
        if name == "panoptic":
            usual = ["00_16", "00_30"]
            parser.add_argument("--cameras", nargs="+", default=usual, metavar="NAME", help="HD cameras (00_16 00_30)")


def _add_benchmark(actions: argparse._SubParsersAction) -> None:
    parser = actions.add_parser(
        "benchmark",
        help="labels, height prior and both solvers on every difficulty of `dto synth`; parts switched off",
        description="Writes a page and a JSON (docs/benchmark.md is one): crowds as `dto synth` writes them, evaluated "
        "in memory, with 95 % intervals over images; then the optimiser with parts switched off one at a time. Seeds "
        "on which the joint solver was tuned are refused. Three difficulties are people of Anny (extra anny).",
    )
    parser.add_argument("-o", "--out", default="out/benchmark", metavar="DIR", help="folder to write (out/benchmark)")
    parser.add_argument("--images", type=positive, default=48, metavar="N", help="per difficulty (48)")
    parser.add_argument("--seed", type=not_negative, default=201, help="of the crowds (201)")
    parser.add_argument(
        "--difficulty", action="append", metavar="NAME", help="only this one; may be given several times (all)"
    )
    parser.add_argument("--no-ablation", action="store_true", help="leave out what switches parts off")
    parser.add_argument("--golden", type=Path, metavar="DIR", help="folder of recorded cases to add, as tests/golden")
    add_heights_option(parser)
    add_config_options(parser)
    parser.set_defaults(run=_run_benchmark)


def _run_rh(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.inert_pickle import PickleRefused
    from dto_pipeline.data.sources.relative_human import read_annotations
    from dto_pipeline.evaluate.relative_human import evaluate_rh

    path = Path(arguments.annotations)
    path = path / f"{arguments.split}_annots.npz" if path.is_dir() else path
    try:
        annotations = read_annotations(path)
    except FileNotFoundError as error:
        raise DtoError(f"{path} does not exist; name RelativeHuman's *_annots.npz or its folder") from error
    except PickleRefused as error:
        raise DtoError(f"{path} cannot be read: {error}") from error
    body, people = _body(arguments), _people(arguments.predictions)
    regressor = _regressor(arguments, body)
    evaluation = evaluate_rh(
        people, annotations.images, body, regressor, arguments.mode, arguments.resamples, arguments.seed
    )
    for problem in annotations.problems:
        print(f"{path}, {problem.image}, {problem.reason}; taken as unknown")
    return _report(evaluation, arguments)


def _run_synthetic(arguments: argparse.Namespace) -> int:
    from dto_pipeline.evaluate.placements import evaluate_synthetic

    after = _people(arguments.labels)
    placed = {"labels": after}
    if (after.status != "").any():
        placed = {"before": _people(arguments.labels, "before"), "after": after}
    truth = _people(arguments.truth)
    evaluation = evaluate_synthetic(placed, truth, _body(arguments), arguments.resamples, arguments.seed)
    return _report(evaluation, arguments)


def _run_meshes(arguments: argparse.Namespace) -> int:
    from dto_pipeline.evaluate.mesh_evaluation import evaluate_meshes

    found, truth = _people(arguments.found, arguments.values), _people(arguments.truth)
    evaluation = evaluate_meshes(found, truth, _body(arguments), arguments.match, arguments.resamples, arguments.seed)
    return _report(evaluation, arguments)


def _run_protocol(arguments: argparse.Namespace) -> int:
    from dto_pipeline.evaluate.mesh_evaluation import Bodies, evaluate_protocol
    from dto_pipeline.models.body import load_body

    body = _body(arguments)
    truth_body = load_body(arguments.truth_body) if arguments.truth_body else body
    regressor = _array(arguments.regressor) if arguments.protocol == "3dpw" else None
    vertices = _array(arguments.vertices) if arguments.protocol == "agora" and arguments.vertices else None
    if vertices is not None and (
        vertices.dtype.kind not in "iu" or not 0 <= vertices.min() <= vertices.max() < body.num_vertices
    ):
        raise DtoError(f"{arguments.vertices} holds no numbers of vertices 0 .. {body.num_vertices - 1}")
    found, truth = _people(arguments.found), _people(arguments.truth)
    bodies = Bodies(body, truth_body, regressor, vertices)
    return _report(
        evaluate_protocol(found, truth, bodies, arguments.protocol, arguments.resamples, arguments.seed), arguments
    )


def _run_joints(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.joint_truth import read_mupots, read_panoptic
    from dto_pipeline.evaluate.joint_evaluation import evaluate_joints

    regressor, body, found = _array(arguments.regressor), _body(arguments), _people(arguments.found)
    is_mupots = arguments.protocol == "mupots"
    truth = read_mupots(arguments.root) if is_mupots else read_panoptic(arguments.root, arguments.cameras)
    asked = (arguments.protocol, arguments.resamples, arguments.seed)
    return _report(evaluate_joints(found, truth, body, regressor, *asked), arguments)


def _run_benchmark(arguments: argparse.Namespace) -> int:
    import torch

    from dto_pipeline.lab.benchmark import BenchmarkSettings, errors_section, run_benchmark

    torch.set_num_threads(1)  # small tensors: more threads are slower
    settings = BenchmarkSettings(
        images=arguments.images,
        seed=arguments.seed,
        heights=arguments.heights,
        difficulties=tuple(arguments.difficulty or ()),
        ablation=not arguments.no_ablation,
        recorded=arguments.golden,
    )
    report = run_benchmark(local_place(arguments.out), settings, read_config(arguments))
    print("\n".join([*errors_section(report), "", f"{arguments.out}/benchmark.md and .json written"]))
    return 0


def _array(path: str) -> np.ndarray:
    import numpy as np

    try:
        with open_regular(path) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DtoError(f"{path} cannot be read ({error}); expected a plain .npy") from error


def _people(place: str, values: str = "after") -> People:
    """People of any kind of file; of a run, those of its finished shards."""
    from dto_pipeline.data.people import read_people
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.view.run_files import find_labels

    location = as_location(place)
    ours = isinstance(location, str) or (location / "run.json").exists()  # behind a URI only labels of this project
    return read_people(find_labels(location) if ours else location, values)


def _body(arguments: argparse.Namespace) -> BodyModel:
    from dto_pipeline.models.body import load_body

    return load_body(arguments.body)


def _regressor(arguments: argparse.Namespace, body: BodyModel) -> np.ndarray:
    """(9, V) J_regressor_extra: neck and head top are regressed from vertices, so it must be of the same model."""
    from importlib.resources import files

    from dto_pipeline.models.body import read_regressor

    if arguments.body != STAND_IN_BODY and not arguments.regressor:
        raise DtoError("--body needs --regressor: neck and head top are regressed from that model's vertices")
    path = arguments.regressor or str(files("dto_pipeline.assets") / "J_regressor_extra.npy")
    return read_regressor(path, body, "--regressor")


def _report(evaluation: Evaluation, arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.files import write_bytes_atomic, write_json_atomic

    print(evaluation.as_table())
    if arguments.json:
        write_json_atomic(Path(arguments.json), evaluation.to_json())
    if arguments.csv:
        write_bytes_atomic(Path(arguments.csv), evaluation.as_csv().encode())
    return 0
