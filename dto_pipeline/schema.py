"""Arrow schemas of everything the pipeline writes: the only place where a column is spelled.

Two tables, both one row per image with its people as ``list<struct>``: the manifest (`dto-manifest/1`, what goes in)
and the labels (`dto-labels/1`, what comes out). Units and meanings travel as field metadata.
"""

from __future__ import annotations

import pyarrow as pa

MANIFEST_SCHEMA_NAME = "dto-manifest/1"
LABELS_SCHEMA_NAME = "dto-labels/1"
COORDINATES = "camera frame x right, y down, z forward, metres; pixels u right, v down, origin top left"


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description}
    if unit:
        metadata["unit"] = unit
    return pa.field(name, kind, metadata=metadata)


def _vector(length: int) -> pa.DataType:
    return pa.list_(pa.float32(), length)


_IMAGE_KEY = [
    _field("image_id", pa.string(), "key: subset, slash, image_path"),
    _field("subset", pa.string(), "data set the image belongs to"),
    _field("image_path", pa.string(), "path of the image inside its subset, as published"),
    _field("width", pa.int32(), "image width, un-rotated; 0 = the image could not be read", "px"),
    _field("height", pa.int32(), "image height, un-rotated; 0 = the image could not be read", "px"),
]

_CAMERA = [
    _field("fx", pa.float64(), "focal length along u", "px"),
    _field("fy", pa.float64(), "focal length along v", "px"),
    _field("cx", pa.float64(), "principal point u", "px"),
    _field("cy", pa.float64(), "principal point v", "px"),
]

_PERSON_LABEL = [
    _field("person_index", pa.int32(), "position of the person in its image; source order"),
    _field("source_row", pa.int64(), "row of the label file; -1 = added by a detector"),
    _field("pose", _vector(72), "24 x 3 axis-angle, root (global_orient) first", "rad"),
    _field("betas", _vector(11), "SMPL shape coefficients; the last is the kid axis (0 adult, 1 infant template)"),
    _field("transl", _vector(3), "translation added after skinning (not the pelvis)", "m"),
]

_PERSON_SEEN = [
    _field("bbox_xyxy", _vector(4), "box of the person: left, top, right, bottom; NaN = unknown", "px"),
    _field("det_score", pa.float32(), "score of the detector; NaN = from the released labels"),
    _field("age_years", pa.float32(), "estimated age; NaN = unknown, most likely an adult", "year"),
    _field("male_prob", pa.float32(), "probability of being male; NaN = unknown"),
]

MANIFEST_PERSON = pa.struct(
    [
        *_PERSON_LABEL,
        *_PERSON_SEEN,
        _field("mask_rle", pa.binary(), "instance mask of the visible part: COCO compressed run lengths; null = none"),
        _field("mask_height", pa.int32(), "height of the mask; 0 = none", "px"),
        _field("mask_width", pa.int32(), "width of the mask; 0 = none", "px"),
        _field("problem", pa.string(), "why the label row cannot be used; null = usable"),
    ]
)

MANIFEST_SCHEMA = pa.schema(
    [
        _field("shard", pa.int32(), "number of the shard; one row group per shard"),
        *_IMAGE_KEY,
        *_CAMERA,
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

LABEL_PERSON = pa.struct(
    [
        *_PERSON_LABEL,
        _field("transl_init", _vector(3), "translation of the input label", "m"),
        _field("beta_index", pa.int32(), "the shape coefficient that was changed; -1 = none"),
        _field("beta_init", pa.float32(), "its value in the input label (exact undo); NaN = none"),
        _field("scale", pa.float32(), "factor on distance and height; 1 = not moved"),
        *_PERSON_SEEN,
        _field("height_class", pa.string(), "baby, kid, teen, adult_female, adult_male, adult; null = not computed"),
        _field("height_init_m", pa.float32(), "rest-pose height of the input body", "m"),
        _field("height_m", pa.float32(), "rest-pose height of the body after", "m"),
        _field("mask_score", pa.float32(), "score of the network's instance mask; NaN = mask from elsewhere or none"),
        _field("prior_mean_m", pa.float32(), "mean of the height prior", "m"),
        _field("prior_sigma_m", pa.float32(), "standard deviation of the height prior", "m"),
        _field("depth_mean", pa.float32(), "mean relative depth of the person's pixels", "1 / disparity"),
        _field("depth_std", pa.float32(), "its standard deviation", "1 / disparity"),
        _field("slope", pa.float32(), "rendered z against relative depth inside the person", "m * disparity"),
        _field("corr", pa.float32(), "correlation of the same"),
        _field("mask_pixels", pa.int32(), "pixels of the person in the id map"),
        _field("visible_vertices", pa.int32(), "visible vertices, of 6890"),
        _field("depth_group", pa.int8(), "0 near, 1 far, -1 = not measured"),
        _field("z_sigma_m", pa.float32(), "posterior standard deviation of z; NaN where the solver gives none", "m"),
        _field("height_sigma_m", pa.float32(), "the same of height_m", "m"),
        _field("status", pa.string(), "PersonStatus"),
        _field("message", pa.string(), "detail of the status; null = none"),
    ]
)

LABELS_SCHEMA = pa.schema(
    [
        *_IMAGE_KEY,
        _field("image_sha256", pa.string(), "sha256 of the image file's bytes; empty = not read"),
        *_CAMERA,
        _field("status", pa.string(), "ImageStatus; every input image has a row, failures too"),
        _field("message", pa.string(), "detail of the status; null = none"),
        _field("is_optimized", pa.bool_(), "at least one group of two or more people was optimised"),
        _field("is_accepted", pa.bool_(), "is_optimized and good enough: docs/joint_solver.md; paper: the next column"),
        _field("mean_height_deviation", pa.float32(), "score of the image; 0 if nothing counts", "sigma"),
        _field(
            "expected_error_m",
            pa.float32(),
            "expected error of z (absolute, mean of the people placed) by the posterior; null = none, as in mode paper",
            "m",
        ),
        _field("alpha_near", pa.float32(), "z = alpha * depth + beta of the near group; NaN = no fit", "m * disparity"),
        _field("beta_near", pa.float32(), "see alpha_near", "m"),
        _field("alpha_far", pa.float32(), "the same of the far group; NaN = no fit", "m * disparity"),
        _field("beta_far", pa.float32(), "see alpha_far", "m"),
        _field("depth_model", pa.string(), "affine_depth or affine_disparity (solver.mode joint); null = not chosen"),
        _field("disparity_slope", pa.float32(), "1 / z = slope * disparity + offset; NaN = another model", "1 / m"),
        _field("disparity_offset", pa.float32(), "see disparity_slope", "1 / m"),
        _field(
            "z_covariance",
            pa.list_(pa.float32()),
            "covariance of people's z, lower triangle row by row, diagonal included; NaN = not placed; null = none",
            "m2",
        ),
        _field("used_ground_evidence", pa.bool_(), "the near group was placed by its lowest pixels"),
        _field("mask_origin", pa.string(), "where instance masks came from"),
        _field("attribute_origin", pa.string(), "where age and gender came from"),
        _field("depth_origin", pa.string(), "where the depth map came from"),
        _field("num_persons", pa.int32(), "people of the image"),
        _field("persons", pa.list_(LABEL_PERSON), "people in source order, none dropped"),
    ]
)

PERSONS_SCHEMA_NAME = "dto-persons/1"

_IMAGE_OF_PERSON = ("image_id", "subset", "image_path", "width", "height", "image_sha256", "fx", "fy", "cx", "cy")
_IMAGE_VERDICT = ("is_optimized", "is_accepted", "mean_height_deviation", "expected_error_m", "num_persons")

PERSONS_SCHEMA = pa.schema(
    [
        *(LABELS_SCHEMA.field(name) for name in _IMAGE_OF_PERSON),
        LABELS_SCHEMA.field("status").with_name("image_status"),
        *(LABELS_SCHEMA.field(name) for name in _IMAGE_VERDICT),
        *LABEL_PERSON,
    ]
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
