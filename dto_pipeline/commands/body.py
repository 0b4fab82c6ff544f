"""`dto body`: licensed body models become files that this pipeline, and unmodified smplx, can read."""

from __future__ import annotations

import argparse
from pathlib import Path

from dto_pipeline.commands.output import local_place


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("body", help="import body models")
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    importing = actions.add_parser(
        "import",
        help="read an official SMPL file without chumpy and write a clean npz",
        description="Reads SMPL_NEUTRAL.pkl (nothing in it is executed), SMPLA_NEUTRAL.pth or a plain npz.",
    )
    importing.add_argument("source", metavar="FILE", help="SMPL_NEUTRAL.pkl, SMPLA_NEUTRAL.pth or npz")
    importing.add_argument("--kid-template", metavar="NPY", help="smpl_kid_template.npy: adds the kid axis")
    importing.add_argument("-o", "--out", required=True, metavar="DIR", help="folder to write to")
    importing.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.smpl_file import import_smpl

    written = import_smpl(
        Path(arguments.source),
        local_place(arguments.out),
        kid_template=Path(arguments.kid_template) if arguments.kid_template else None,
    )
    for path in written:
        print(f"{path} written")
    return 0
