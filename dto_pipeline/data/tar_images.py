"""Images inside tars: which member a label file means by a name, and an image store that reads them in place.

Label files name images by other folders than the tars do, so both sides are joined by their last path parts. Knows the
index and how to decode; knows no dataset. Sizes in pixels.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dto_pipeline.data.files import json_bytes
from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.images import ImageCorrupt, ImageMissing, ImageStore, open_folder
from dto_pipeline.data.storage import STORAGE_ERRORS, Location, as_location, beside, exists, local_copy, write_bytes
from dto_pipeline.data.tar_index import (
    IMAGE_EXTENSIONS,
    MemberUnreadable,
    TarIndex,
    TarIndexError,
    TarMissing,
    TarSummary,
    build_tar_index,
    list_tars,
    split_address,
)
from dto_pipeline.data.tar_walk import sample_key


@dataclass(frozen=True)
class TarImages(ImageStore):
    """Images named by their addresses ``<tar>!<member>``; safe for any number of threads."""

    index: TarIndex
    similar: Mapping[str, str] = field(default_factory=dict)  # name in no tar -> a member that differs in case only

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """See `ImageStore`."""
        if split_address(image_file) is None:
            near, (key, extension) = self.similar.get(image_file), sample_key(image_file)
            hint = f"; {near} differs in upper and lower case" if near else ""
            if not near and "." in extension:
                hint = f"; neither under its whole name nor as sample {key!r} (a sample's key ends at the first dot)"
            raise ImageMissing(f"image {image_file} is in none of the tars{hint}")
        try:
            return self.index.read(image_file, limit)
        except (TarIndexError, TarMissing) as error:
            raise ImageMissing(f"image {image_file}: {error}") from error
        except MemberUnreadable as error:
            raise ImageCorrupt(f"image {image_file}: {error}") from error


@dataclass(frozen=True)
class ImageLocations:
    """Where n named images lie in the tars."""

    addresses: list[str | None]  # n, None = not found
    similar: dict[int, str]  # of those not found: a member whose name differs in case only
    repeated: list[tuple[str, str]]  # (address taken, another address that fits the same name)


def locate_images(index: TarIndex, names: Sequence[str], key_parts: int) -> ImageLocations:
    """Join image names of a label file with the images of some tars.

    A name and a member belong together when their last `key_parts` path parts are equal up to the first dot of the base
    name, case included. Of several such members the one with the name's own extension is taken, then jpg, jpeg, png,
    then the first; the others are reported. A name with further dots (``cam.0.jpg``) is first looked for as it stands;
    where several names end at one first dot, that only.

    Args:
        names: n distinct names like ``insta-train/a/b/c.jpg``.
        key_parts: 3 for INSTA, 1 for the others.
    """
    keys = [_tail(sample_key(name)[0], key_parts) for name in names]
    found: dict[str, list[tuple[str, str]]] = {key: [] for key in keys}  # (extension, address)
    folded = {key.casefold(): key for key in found}
    similar: dict[str, str] = {}
    for member in index.images():
        key = _tail(sample_key(member.name)[0], key_parts)
        if key in found:
            found[key].append((member.extension, member.address))
        elif near := folded.get(key.casefold()):
            similar.setdefault(near, member.address)
    ranked = [_by_extension(found[key], sample_key(name)[1]) for name, key in zip(names, keys, strict=True)]
    _prefer_whole_names(index, names, keys, key_parts, ranked)
    return ImageLocations(
        addresses=[fitting[0] if fitting else None for fitting in ranked],
        similar={row: similar[key] for row, key in enumerate(keys) if key in similar and not ranked[row]},
        repeated=[(fitting[0], other) for fitting in ranked for other in fitting[1:]],
    )


def _prefer_whole_names(
    index: TarIndex, names: Sequence[str], keys: Sequence[str], key_parts: int, ranked: list[list[str]]
) -> None:
    """Look for names with more than one dot as they stand: their keys end too early to tell them apart."""
    dotted = [row for row, name in enumerate(names) if "." in sample_key(name)[1]]
    if not dotted:
        return
    shared = Counter(keys)
    rows = {_tail(names[row], key_parts): row for row in dotted}
    whole: dict[int, str] = {}
    for member in index.members():
        row = rows.get(_tail(member.name, key_parts))
        if row is not None:
            whole.setdefault(row, member.address)
    for row in dotted:
        if row in whole:
            ranked[row] = [whole[row]]
        elif shared[keys[row]] > 1:
            ranked[row] = []


@dataclass(frozen=True)
class TarPlacement:
    """An image index whose images were found in tars, and what was found on the way."""

    index: ImageIndex  # `image_file` is an address where the image was found, else the label's name
    images: TarImages
    tars: list[TarSummary]
    repeated: list[tuple[str, str]]  # see `ImageLocations`


def tar_index_path(manifest: Location) -> Location:
    """Where the tar index of a manifest lies: beside it."""
    return beside(manifest, ".tars.parquet")


def place_in_tars(
    index: ImageIndex, root: Location, key_parts: int, index_file: Location, progress: bool = False
) -> TarPlacement:
    """Index all tars below a folder and find the images of a label file in them.

    Args:
        index: images by the names of the label file.
        root: folder or URI of the tars.
        key_parts: last path parts that label names and tar keys share.
        index_file: where the tar index is kept, see `tar_index_path`.

    Raises:
        TarIndexError: there is no such folder, or no tar in it.
    """
    summaries = build_tar_index(root, _list_tars(root), index_file, progress=progress)
    opened = TarIndex(index_file, root)
    found = locate_images(opened, index.image_name, key_parts)
    similar = {index.image_name[image]: address for image, address in found.similar.items()}
    files = [address or name for address, name in zip(found.addresses, index.image_name, strict=True)]
    placed = dataclasses.replace(index, located=files)
    return TarPlacement(placed, TarImages(opened, similar), summaries, found.repeated)


def _list_tars(root: Location) -> list[str]:
    try:
        tars = list_tars(root)
    except FileNotFoundError as error:
        raise TarIndexError(f"images folder {root} does not exist; check --data-root or --images") from error
    except STORAGE_ERRORS as error:
        raise TarIndexError(f"images folder {root} cannot be listed: {error}") from error
    if not tars:
        raise TarIndexError(f"{root} holds no *.tar; expected the tars of the images below it (images_in: tars)")
    return tars


@dataclass(frozen=True)
class AnyImages(ImageStore):
    """Addresses ``<tar>!<member>`` and plain files side by side; `tars` None = no tar index."""

    tars: TarImages | None
    folder: ImageStore
    found: Mapping[str, str] = field(default_factory=dict)  # name that was in no tar -> its address now

    def read_bytes(self, image_file: str, limit: int | None = None) -> bytes:
        """See `ImageStore`."""
        image_file = self.found.get(image_file, image_file)
        return self._store(image_file).read_bytes(image_file, limit)

    def _store(self, image_file: str) -> ImageStore:
        if split_address(image_file) is None:
            return self.folder
        if self.tars is None:
            raise ImageMissing(
                f"image {image_file} lies in a tar, and the tar index (*.tars.parquet) is not beside the manifest; "
                "copy it there, or build the manifest again"
            )
        return self.tars


def open_images(images_root: Location, manifest: Location) -> ImageStore:
    """The store a manifest's images are read from: a folder, and tars where the manifest has a tar index beside it."""
    root, index_file = as_location(images_root), tar_index_path(as_location(manifest))
    tars = TarImages(TarIndex(index_file, root)) if exists(index_file) else None
    return AnyImages(tars, open_folder(root), _read_found(as_location(manifest)))


def index_again(manifest: Location, root: Location, missing: Sequence[str], key_parts: int, progress: bool) -> None:
    """Look at the tars of a manifest anew: some were fetched again, or are new. The manifest stays as it is.

    Args:
        manifest: its index is replaced where a tar has changed its size; where `missing` are now lies beside it too.
        root: folder or URI of the tars.
        missing: names of the label file that were in none of the tars.
        key_parts: as in `locate_images`.

    Raises:
        TarIndexError: the manifest has no tars, or their folder cannot be listed.
    """
    index_file = tar_index_path(manifest)
    if not exists(index_file):
        raise TarIndexError(f"{manifest} has no tar index beside it: its images are plain files, which need none")
    build_tar_index(root, _list_tars(root), index_file, progress=progress)
    places = locate_images(TarIndex(index_file, root), missing, key_parts).addresses
    found = {name: address for name, address in zip(missing, places, strict=True) if address}
    write_bytes(_found_path(manifest), json_bytes(found))


def _found_path(manifest: Location) -> Location:
    return beside(manifest, ".tars.found.json")


def _read_found(manifest: Location) -> dict[str, str]:
    """Name -> address of images that `index_again` found."""
    place = _found_path(manifest)
    if not exists(place):
        return {}
    try:
        with local_copy(place) as path:
            found = json.loads(path.read_bytes())
        if isinstance(found, dict) and all(isinstance(address, str) for address in found.values()):
            return found
        raise ValueError(f"holds {type(found).__name__}, expected name: address pairs")
    except (ValueError, RecursionError) as error:
        raise TarIndexError(
            f"{place} cannot be read ({error}); delete it, then dto manifest check --reindex"
        ) from error


def carry_tar_index(manifest: Location, derived: Location) -> None:
    """Put copies of a manifest's tar index, if it has one, beside a manifest that was made from it."""
    for place in (tar_index_path, _found_path):
        file = place(as_location(manifest))
        if exists(file):
            with local_copy(file) as source:
                write_bytes(place(as_location(derived)), source.read_bytes())


def _tail(key: str, parts: int) -> str:
    return "/".join(key.split("/")[-parts:])


def _by_extension(found: list[tuple[str, str]], own: str) -> list[str]:
    """Addresses of (extension, address), preferred first: the label's own extension, then as in IMAGE_EXTENSIONS."""
    order = (own.lower(), *IMAGE_EXTENSIONS)
    return [address for _, address in sorted(found, key=lambda entry: order.index(entry[0]))]
