"""The columns of all Parquet files that the pipeline writes; each column is defined only here.

The manifest (`dto-manifest/1`, input) and the labels (`dto-labels/1`, output) have one row per image with its people as
``list<struct>``. Units and meanings are field metadata. A label column also says where its value is in a
`scene.PlacedScene`; writer, reader, exports and dataset card follow this table. To add a column, add a line here and
the code that computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

MANIFEST_SCHEMA_NAME = "dto-manifest/1"
LABELS_SCHEMA_NAME = "dto-labels/1"
COORDINATES = "camera frame x right, y down, z forward, metres; pixels u right, v down, origin top left"


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description}
    if unit:
        metadata["unit"] = unit
    return pa.field(name, kind, metadata=metadata)


@dataclass(frozen=True)
class Column:
    """One column of the labels."""

    name: str
    kind: pa.DataType
    text: str
    unit: str = ""
    place: str = ""  # fields, dict entries and positions in a PlacedScene; "" = `data.labels` computes the value
    added: bool = False  # of images: earlier versions did not write it; read as null from their files

    @property
    def field(self) -> pa.Field:
        """The column as an Arrow field."""
        return _field(self.name, self.kind, self.text, self.unit)

    @property
    def item_kind(self) -> pa.DataType:
        """The type of the items of a list, else the type of the column."""
        listed = pa.types.is_fixed_size_list(self.kind) or pa.types.is_list(self.kind)
        return self.kind.value_type if listed else self.kind

    def row(self, prefix: str = "") -> tuple[str, str, str, str]:
        """Name, type, unit and meaning, as in docs/labels.md and the dataset card."""
        kind = {"double": "float64", "float": "float32"}.get(str(self.item_kind), str(self.item_kind))
        if pa.types.is_fixed_size_list(self.kind):
            kind = f"{kind}[{self.kind.list_size}]"
        elif self.item_kind is not self.kind:
            kind = f"list of {kind}"
        return f"`{prefix}{self.name}`", kind, self.unit, self.text


def _fields(columns: Sequence[Column]) -> list[pa.Field]:
    return [column.field for column in columns]


def _vector(length: int) -> pa.DataType:
    return pa.list_(pa.float32(), length)


def _scene(name: str, kind: pa.DataType, text: str, unit: str = "") -> Column:
    """A column that is a field of `scene.Scene`."""
    return Column(name, kind, text, unit, f"scene.{name}")


def _own(name: str, kind: pa.DataType, text: str, unit: str = "") -> Column:
    """A column that is a field of `scene.PlacedScene` itself."""
    return Column(name, kind, text, unit, name)


_TEXT, _BOOL, _INT, _FLOAT, _DOUBLE = pa.string(), pa.bool_(), pa.int32(), pa.float32(), pa.float64()

_IMAGE_KEY = [
    _scene("image_id", _TEXT, "key: subset, slash, image_path"),
    _scene("subset", _TEXT, "data set the image belongs to"),
    _scene("image_path", _TEXT, "path of the image inside its subset, as published"),
    _scene("width", _INT, "image width, un-rotated; 0 = the image could not be read", "px"),
    _scene("height", _INT, "image height, un-rotated; 0 = the image could not be read", "px"),
]

_CAMERA = [
    Column("fx", _DOUBLE, "focal length along u", "px"),
    Column("fy", _DOUBLE, "focal length along v", "px"),
    Column("cx", _DOUBLE, "principal point u", "px"),
    Column("cy", _DOUBLE, "principal point v", "px"),
]

_PERSON_LABEL = [
    Column("person_index", _INT, "position of the person in its image; source order"),
    _scene("source_row", pa.int64(), "row of the label file; -1 = added by a detector"),
    _scene("pose", _vector(72), "24 x 3 axis-angle, root (global_orient) first", "rad"),
    _own("betas", _vector(11), "SMPL shape coefficients; the last is the kid axis (0 adult, 1 infant template)"),
    _own("transl", _vector(3), "translation added after skinning (not the pelvis)", "m"),
]

_PERSON_SEEN = [
    _scene("bbox_xyxy", _vector(4), "box of the person: left, top, right, bottom; NaN = unknown", "px"),
    _scene("det_score", _FLOAT, "score of the detector; NaN = from the released labels"),
    _scene("age_years", _FLOAT, "estimated age; NaN = unknown, most likely an adult", "year"),
    _scene("male_prob", _FLOAT, "probability of being male; NaN = unknown"),
]

MANIFEST_PERSON = pa.struct(
    [
        *_fields([*_PERSON_LABEL, *_PERSON_SEEN]),
        _field("mask_rle", pa.binary(), "instance mask of the visible part: COCO compressed run lengths; null = none"),
        _field("mask_height", pa.int32(), "height of the mask; 0 = none", "px"),
        _field("mask_width", pa.int32(), "width of the mask; 0 = none", "px"),
        _field("problem", pa.string(), "why the label row cannot be used; null = usable"),
    ]
)

MANIFEST_SCHEMA = pa.schema(
    [
        _field("shard", pa.int32(), "number of the shard; one row group per shard"),
        *_fields([*_IMAGE_KEY, *_CAMERA]),
        _field("image_file", pa.string(), "file of the image, relative to the images folder"),
        _field("depth_file", pa.string(), "precomputed depth map, relative to the depth folder; null = none"),
        _field("mask_origin", pa.string(), "where the masks came from: sidecar, labels, detection; null = none"),
        _field("attribute_origin", pa.string(), "where ages and genders came from: sidecar, labels; null = unknown"),
        _field("problem_status", pa.string(), "ImageStatus found while building; null = none"),
        _field("problem", pa.string(), "what was found; null = nothing"),
        _field("num_persons", pa.int32(), "people of the image"),
        _field("persons", pa.list_(MANIFEST_PERSON), "people in source order"),
    ]
)

PERSON_COLUMNS = (
    *_PERSON_LABEL,
    Column("transl_init", _vector(3), "translation of the input label", "m", "scene.transl"),
    _own("beta_index", _INT, "the shape coefficient that was changed; -1 = none"),
    Column("beta_init", _FLOAT, "its value in the input label (exact undo); NaN = none"),
    _own("scale", _FLOAT, "factor on distance and height; 1 = not moved"),
    *_PERSON_SEEN,
    Column("height_class", _TEXT, "baby, kid, teen, adult_female, adult_male, adult; null = not computed"),
    _own("height_init_m", _FLOAT, "rest-pose height of the input body", "m"),
    _own("height_m", _FLOAT, "rest-pose height of the body after", "m"),
    _scene("mask_score", _FLOAT, "score of the network's instance mask; NaN = mask from elsewhere or none"),
    _own("prior_mean_m", _FLOAT, "mean of the height prior", "m"),
    _own("prior_sigma_m", _FLOAT, "standard deviation of the height prior", "m"),
    _own("depth_mean", _FLOAT, "mean relative depth of the person's pixels", "1 / disparity"),
    _own("depth_std", _FLOAT, "its standard deviation", "1 / disparity"),
    _own("slope", _FLOAT, "rendered z against relative depth inside the person", "m * disparity"),
    _own("corr", _FLOAT, "correlation of the same"),
    _own("mask_pixels", _INT, "pixels of the person in the id map (joint and metric maps: of known depth)"),
    _own("visible_vertices", _INT, "visible vertices, of 6890"),
    _own("depth_group", pa.int8(), "0 near, 1 far, -1 = not measured"),
    _own("z_sigma_m", _FLOAT, "posterior standard deviation of z; NaN where the solver gives none", "m"),
    _own("height_sigma_m", _FLOAT, "the same of height_m", "m"),
    Column("status", _TEXT, "PersonStatus", "", "person_status"),
    Column("message", _TEXT, "detail of the status; null = none", "", "person_message"),
)

_SLOPE = "m * disparity"
_FITS = (
    Column("alpha_near", _FLOAT, "z = alpha * depth + beta of the near group; NaN = no fit", _SLOPE, "alpha.0"),
    Column("beta_near", _FLOAT, "see alpha_near", "m", "beta.0"),
    Column("alpha_far", _FLOAT, "the same of the far group; NaN = no fit", _SLOPE, "alpha.1"),
    Column("beta_far", _FLOAT, "see alpha_far", "m", "beta.1"),
    _own("depth_model", _TEXT, "affine_depth or affine_disparity (solver.mode joint); null = not chosen"),
    Column(
        "disparity_slope",
        _FLOAT,
        "1 / z = slope * disparity + offset; NaN = another model",
        "1 / m",
        "disparity_line.0",
    ),
    Column("disparity_offset", _FLOAT, "see disparity_slope", "1 / m", "disparity_line.1"),
    _own(
        "z_covariance",
        pa.list_(pa.float32()),
        "covariance of people's z, lower triangle row by row, diagonal included; NaN = not placed; null = none",
        "m2",
    ),
    Column("used_ground_evidence", _BOOL, "the near group was placed by its lowest pixels", "", "used_ground"),
    Column("mask_origin", _TEXT, "where instance masks came from", "", "scene.origin.masks"),
    Column("attribute_origin", _TEXT, "where age and gender came from", "", "scene.origin.attributes"),
    Column("depth_origin", _TEXT, "where the depth map came from", "", "scene.origin.depth"),
)
_MESSAGE = _own("message", _TEXT, "detail of the status; null = none")

IMAGE_COLUMNS = (
    *_IMAGE_KEY,
    _scene("image_sha256", _TEXT, "sha256 of the image file's bytes; empty = not read"),
    *_CAMERA,
    _own("status", _TEXT, "ImageStatus; every input image has a row, failures too"),
    _MESSAGE,
    _own("is_optimized", _BOOL, "at least one group of two or more people was optimised"),
    _own("is_accepted", _BOOL, "is_optimized and good enough: docs/joint_solver.md; paper: the next column"),
    Column("mean_height_deviation", _FLOAT, "score of the image; 0 if nothing counts", "sigma", "deviation"),
    Column(
        "expected_error_m",
        _FLOAT,
        "expected error of z (absolute, mean of the people placed) by the posterior; null = none, as in mode paper",
        "m",
        "expected_error",
        added=True,
    ),
    *_FITS,
    Column("num_persons", _INT, "people of the image"),
)

LABEL_PERSON = pa.struct(_fields(PERSON_COLUMNS))
LABELS_SCHEMA = pa.schema(
    [*_fields(IMAGE_COLUMNS), _field("persons", pa.list_(LABEL_PERSON), "people in source order, none dropped")]
)

PERSONS_SCHEMA_NAME = "dto-persons/1"

PERSONS_SCHEMA = pa.schema(
    [
        column.field.with_name("image_status") if column.name == "status" else column.field
        for column in IMAGE_COLUMNS
        if column not in (*_FITS, _MESSAGE)
    ]
    + _fields(PERSON_COLUMNS)
)
"""The labels with one row per person, for trainers that crop people; `status` and `message` are the person's."""

FINDINGS_SCHEMA = pa.schema(
    [
        _field("kind", pa.string(), "an ImageStatus, person, image_without_labels, also_in, tar_damaged, ..."),
        _field("image", pa.string(), "image file, key, or address in a tar"),
        _field("label_row", pa.int64(), "row of the label file; null = all rows of the image, or none"),
        _field("reason", pa.string(), "what was found"),
        _field("used", pa.bool_(), "takes part in the run all the same"),
    ]
)

TAR_INDEX_SCHEMA_NAME = "dto-tar-index/1"

TAR_INDEX_SCHEMA = pa.schema(
    [
        _field("tar", pa.string(), "tar file, relative to the root it was indexed under"),
        _field("member", pa.string(), "name of the entry as stored in the tar"),
        _field("key", pa.string(), "sample of the entry: its name up to the first dot of the base name"),
        _field("extension", pa.string(), "the rest of the name, without the dot"),
        _field("offset", pa.int64(), "first byte of the contents in the tar", "byte"),
        _field("size", pa.int64(), "length of the contents", "byte"),
        _field("problem", pa.string(), "why the entry is not read; null = usable"),
    ]
)

MERGE_SCHEMA_NAME = "dto-merge/1"

MERGE_SCHEMA = pa.schema(
    [
        _field("prediction_row", pa.int64(), "row of the prediction file"),
        _field("image", pa.string(), "image_id in the manifest, or the image's name where it has none"),
        _field("status", pa.string(), "PredictionStatus"),
        _field("message", pa.string(), "detail of the status; null = none"),
        _field("det_score", pa.float32(), "score of the prediction; NaN = unknown"),
        _field("same_as_source_row", pa.int64(), "matched: source_row of the released person; -1 = none"),
        _field("same_as_prediction_row", pa.int64(), "duplicate: row of the prediction kept; -1 = none"),
    ]
)
