"""A finished (or unfinished) run opened for reading: its receipts, its labels shard by shard, its manifest.

Joins the run's folder to the data room for everything that looks at results; writes nothing. A run whose manifest is
gone can still be read, only what needs the input (pixels, undo) is out of reach and says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dto_pipeline.config import STAND_IN_BODY, DepthConfig
from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.label_files import find_label_files
from dto_pipeline.data.labels import LabelsError, read_label_metadata, read_labels
from dto_pipeline.data.manifest import Manifest, ManifestError, find_manifest
from dto_pipeline.data.remote_inputs import fetch_body, open_depth
from dto_pipeline.data.storage import Location, as_location
from dto_pipeline.data.tars import open_images
from dto_pipeline.models.body import BodyModel, BodyModelError
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.run.folder import RunDirectory, RunScan, read_identity, scan_run
from dto_pipeline.run.identity import RunIdentity


@dataclass(frozen=True)
class RunFiles:
    """One run, open for reading."""

    directory: RunDirectory
    identity: RunIdentity
    scan: RunScan
    manifest: Manifest | None
    manifest_problem: str = ""  # why there is no manifest

    @property
    def shards(self) -> list[int]:
        """Shards with a receipt that holds, in order."""
        return sorted(self.scan.done)

    def label_file(self, shard: int) -> Location:
        """The label file of a shard that counts."""
        return self.scan.labels.files[shard]

    def read_shard(self, shard: int) -> Any:
        """Label rows of one shard, a `pyarrow.Table`. Raises: LabelsError."""
        return read_labels(self.label_file(shard))


@dataclass(frozen=True)
class Pixels:
    """Where photographs and depth maps of a run are read from."""

    images: ImageStore
    depth: DepthFiles | None  # None: a network made the maps, and they are not kept


def open_run_files(run_dir: str | Path, manifest: str | Path | None = None) -> RunFiles:
    """Open a run's folder.

    Args:
        run_dir: the folder.
        manifest: where the manifest lies now; None = where it was when the run started.

    Raises:
        RunDirectoryError: the folder is not a run.
        ManifestError: the manifest that was named cannot be read or is another one.
    """
    directory = RunDirectory(as_location(run_dir))
    identity = read_identity(directory)
    found, problem = None, ""
    try:
        named = [] if manifest is None else [as_location(manifest)]
        recorded = as_location(identity.manifest_path)
        found = find_manifest(recorded, as_location(run_dir), identity.manifest_fingerprint, named)
    except ManifestError as error:
        if manifest is not None:
            raise
        problem = str(error)
    return RunFiles(directory, identity, scan_run(directory, identity), found, problem)


def find_labels(source: str | Path) -> list[Location]:
    """Label files of a run (its finished shards), of an exported folder, or the one file `source` is.

    Raises:
        LabelsError: there is none.
    """
    directory = RunDirectory(as_location(source))
    if not directory.is_run():
        return find_label_files(source)
    scan = scan_run(directory, read_identity(directory))
    if not scan.done:
        raise LabelsError(f"{source} has no finished shard yet; `dto status` tells how far it is")
    return list(scan.labels.files.values())


def open_pixels(run: RunFiles, images: Location | None = None, depth: Location | None = None) -> Pixels | None:
    """Stores of the run's photographs and depth maps, `images` and `depth` in place of the manifest's folders.

    Depth files that a run with a network never saw are not shown for its own, unless `depth` names a folder.

    Returns:
        None where the manifest is gone: the files' names are in it.
    """
    if run.manifest is None:
        return None
    store = open_images(images or run.manifest.images_root, run.manifest.path)
    options = run.identity.config["depth"]
    if options["source"] == "model" and depth is None:
        return Pixels(store, None)
    config = DepthConfig(kind=options["kind"], scale=options["scale"])
    return Pixels(store, open_depth(config, depth or options["root"] or run.manifest.depth_root or ""))


def load_run_body(run: RunFiles, path: str | Path | None) -> BodyModel:
    """The body model a run was made with.

    Args:
        run: the run.
        path: where the model lies now; None = as in the run's config.

    Raises:
        BodyModelError: it cannot be read, or is another one than the labels' footer names.
    """
    options = run.identity.config["body"]
    named = options["model_path"] or STAND_IN_BODY  # until 0.3.0 a run that named none had the stand-in
    body = fetch_body(named if path is None else path, options["kid_axis"])
    for shard in run.shards[:1]:
        wanted = read_label_metadata(run.label_file(shard)).get("body_sha256", body.sha256)
        if wanted != body.sha256:
            found = f"sha256 {body.sha256[:16]}, the labels were made with {wanted[:16]}"
            raise BodyModelError(f"the body model has {found}; name the right one with --body")
    return body
