"""`dto view`: draw scenes of a run, or of a file of people, as pages and 3D files."""

from __future__ import annotations

import argparse
from pathlib import Path

from dto_pipeline.commands.options import add_moved_options, not_negative
from dto_pipeline.commands.output import local_place
from dto_pipeline.errors import DtoError

_DEFAULT_WORST = 5


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "view",
        help="draw scenes of a run: meshes before and after, from above, depth map; also as 3D files",
        description="Writes one PNG per scene: the photograph with the meshes before and after, the view from above in "
        "metres, the depth map with the fit, one line per person. Without a choice the five worst scenes are drawn.",
    )
    parser.add_argument(
        "run_dir", metavar="RUN", help="the run's folder; or a file of people, with --images and --body"
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--key", action="append", default=[], metavar="K", help="image key, or its end; repeatable")
    parser.add_argument(
        "--worst", type=not_negative, default=0, metavar="N", help="this many optimised scenes of largest deviation"
    )
    parser.add_argument("--random", type=not_negative, default=0, metavar="N", help="this many scenes chosen at random")
    parser.add_argument("--seed", type=not_negative, default=0, metavar="S", help="seed of --random (0)")
    parser.add_argument("--status", action="append", default=[], metavar="S", help="only images of this status")
    parser.add_argument("--glb", action="store_true", help="also write a binary glTF of each scene (y up, metres)")
    add_places(parser)
    parser.set_defaults(run=_run)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Options for files that were moved since the run."""
    add_moved_options(parser)
    parser.add_argument("--images", metavar="DIR", help="images folder in place of the manifest's")
    parser.add_argument("--depth", metavar="DIR", help="depth folder in place of the manifest's")


def _run(arguments: argparse.Namespace) -> int:
    from dto_pipeline.data.files import write_bytes_atomic
    from dto_pipeline.view.gltf import scene_to_glb
    from dto_pipeline.view.pages import draw_scene, file_name, save_png
    from dto_pipeline.view.run_files import choose_scenes, load_placed, load_run_body, open_pixels, open_run_files

    if Path(arguments.run_dir).is_file():
        return _view_file(arguments)
    run = open_run_files(arguments.run_dir, arguments.manifest)
    given = arguments.key or arguments.random or arguments.status
    worst = arguments.worst or (0 if given else _DEFAULT_WORST)
    places = choose_scenes(run, arguments.key, worst, arguments.random, arguments.seed, arguments.status)
    body, out = load_run_body(run, arguments.body), local_place(arguments.out)
    if run.manifest is None:
        print(f"without photographs: {run.manifest_problem}")
    for placed in load_placed(run, places, open_pixels(run, arguments.images, arguments.depth)):
        path = out / f"{file_name(placed.scene.image_id)}.png"
        save_png(draw_scene({"after": placed}, body), path)
        print(path)
        if arguments.glb:
            path = path.with_name(f"{path.stem}.glb")
            write_bytes_atomic(path, scene_to_glb(placed, body))
            print(path)
    if not places:
        print("no scene was chosen; `dto status` lists the statuses of a run, --random N takes any")
    return 0 if places else 1


def _view_file(arguments: argparse.Namespace) -> int:
    """Draw scenes of a file of people: released DTO-Humans, CameraHMR's, predictions, exports."""
    from dto_pipeline.data.images import ImageStore
    from dto_pipeline.data.people import read_people
    from dto_pipeline.data.storage import as_location
    from dto_pipeline.models.body import load_body
    from dto_pipeline.view.pages import draw_file_image, file_name, save_png
    from dto_pipeline.view.run_files import choose_images

    if arguments.worst or arguments.status or arguments.glb:
        raise DtoError(f"{arguments.run_dir} is not a run: choose scenes with --key or --random; it has no 3D files")
    if arguments.body is None:
        raise DtoError(f"{arguments.run_dir} does not name its body model; name it with --body (demo = the stand-in)")
    people = read_people(arguments.run_dir)
    number = arguments.random or (0 if arguments.key else _DEFAULT_WORST)
    images = None if arguments.images is None else ImageStore(as_location(arguments.images))
    body = load_body(arguments.body)
    for image in choose_images(people, arguments.key, number, arguments.seed):
        path = local_place(arguments.out) / f"{file_name(str(people.images[image]))}.png"
        save_png(draw_file_image(people, image, body, images), path)
        print(path)
    return 0
