from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest

from dto_pipeline.data.images import ImageStore
from dto_pipeline.data.rle import encode_rle
from dto_pipeline.data.scenes import SceneLoader
from dto_pipeline.data.sources.sidecar import write_sidecar
from dto_pipeline.models.depth import DepthFiles
from dto_pipeline.status import ImageStatus, PersonStatus
from dto_pipeline.timing import StageClock
from tests.data.small_set import HEIGHT, WIDTH, build_small, label_arrays, read_findings, write_depth, write_image

NAMES = ["a.jpg", "a.jpg", "b.jpg"]


@pytest.fixture
def root(tmp_path):
    for name in set(NAMES):
        write_image(tmp_path, name)
        write_depth(tmp_path, name)
    return tmp_path


def random_mask(seed: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < 0.5


def give_masks(root, masks, **columns):
    """A sidecar whose person r has masks[r]."""
    sizes = np.array([(0, 0) if mask is None else mask.shape for mask in masks])
    write_sidecar(
        root / "labels" / "s.parquet",
        np.arange(len(masks)),
        mask_rle=[None if mask is None else encode_rle(mask) for mask in masks],
        mask_height=sizes[:, 0],
        mask_width=sizes[:, 1],
        **columns,
    )


def load(manifest, rows=None, side=512, **options):
    table = manifest.read_shard(0) if rows is None else rows
    return SceneLoader(ImageStore(manifest.images_root), DepthFiles(manifest.depth_root), side).load(table, **options)


def replaced(table: pa.Table, column: str, values: list) -> pa.Table:
    place = table.schema.get_field_index(column)
    return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))


def test_a_scene_holds_what_image_label_and_sidecar_say(root):
    masks = [random_mask(row) for row in range(3)]
    give_masks(root, masks, age_years=np.array([5.0, np.nan, 40]), det_score=np.array([0.5, 0.6, 0.7]))
    manifest, _ = build_small(root, NAMES, sidecar="labels/s.parquet")
    first, second = load(manifest)
    arrays = label_arrays(NAMES)
    assert (first.image_id, first.width, first.height, first.num_people) == ("small/a.jpg", WIDTH, HEIGHT, 2)
    assert first.problem is None
    np.testing.assert_array_equal(first.pose, arrays["pose_cam"][:2])
    np.testing.assert_array_equal(second.transl, arrays["trans_cam"][2:])
    np.testing.assert_array_equal(first.intrinsics, arrays["cam_int"][0])
    np.testing.assert_array_equal(first.age_years, [5, np.nan])
    assert second.source_row.tolist() == [2]
    np.testing.assert_array_equal(first.masks, masks[:2])
    assert first.image.shape == (HEIGHT, WIDTH, 3)
    assert first.disparity.shape == (HEIGHT, WIDTH)
    assert len(first.image_sha256) == 64
    assert first.person_problem == [None, None]
    assert first.origin == {"masks": "sidecar", "attributes": "sidecar", "depth": "file"}


def test_masks_are_sampled_at_the_size_of_the_person_map(root):
    masks = [random_mask(row) for row in range(3)]
    give_masks(root, masks)
    manifest, _ = build_small(root, NAMES, sidecar="labels/s.parquet")
    scene = load(manifest, side=10)[0]
    assert scene.masks.shape == (2, 7, 10)
    for i in range(7):
        for j in range(10):
            assert scene.masks[1, i, j] == masks[1][i * HEIGHT // 7, j * WIDTH // 10]


def test_threads_change_nothing_but_the_time(root):
    manifest, _ = build_small(root, NAMES)
    clock = StageClock()
    with ThreadPoolExecutor(2) as threads:
        threaded = load(manifest, threads=threads, clock=clock)
    for one, other in zip(threaded, load(manifest), strict=True):
        assert one.image_id == other.image_id
        np.testing.assert_array_equal(one.image, other.image)
    assert set(clock.seconds) == {"decode", "masks", "depth"}


def test_a_person_without_a_mask_may_own_every_pixel(root):
    give_masks(root, [None, random_mask(1), None])
    manifest, _ = build_small(root, NAMES, sidecar="labels/s.parquet")
    first, second = load(manifest)
    assert first.masks[0].all()
    assert not first.masks[1].all()
    assert first.origin["masks"] == "sidecar"
    assert second.origin == {"masks": "none", "attributes": "unknown", "depth": "file"}


def test_an_empty_mask_costs_its_person_only_but_a_tiny_one_is_no_empty_one(root):
    dot = np.zeros((HEIGHT, WIDTH), bool)
    dot[1, 1] = True  # falls between the samples of a small map
    give_masks(root, [np.zeros_like(dot), dot, None])
    manifest, _ = build_small(root, NAMES, sidecar="labels/s.parquet")
    scene = load(manifest, side=4)[0]
    assert scene.problem is None
    assert scene.person_problem == [(PersonStatus.EMPTY_MASK, "the instance mask holds no pixel"), None]
    assert not scene.masks.any()


def test_a_mask_of_another_size_or_a_bad_label_makes_its_person_invalid(root):
    spoiled = label_arrays(NAMES)["pose_cam"]
    spoiled[0, 7] = np.nan
    give_masks(root, [None, random_mask(1, WIDTH, HEIGHT), None])
    manifest, _ = build_small(root, NAMES, {"pose_cam": spoiled}, sidecar="labels/s.parquet")
    problems = load(manifest)[0].person_problem
    assert [problem[0] for problem in problems] == [PersonStatus.INVALID_LABEL] * 2
    assert problems[0][1] == "pose is not finite"
    assert "another size" in problems[1][1]


def test_people_are_judged_even_if_the_manifest_was_not(root):
    masks = [random_mask(0, WIDTH, HEIGHT), random_mask(1), None]
    give_masks(root, masks)
    transl = label_arrays(NAMES)["trans_cam"]
    transl[1, 2] = -1
    manifest, _ = build_small(root, NAMES, {"trans_cam": transl}, sidecar="labels/s.parquet")
    rows = manifest.read_shard(0)
    people = [[{**p, "problem": None} for p in image] for image in rows["persons"].to_pylist()]
    people[1][0]["mask_rle"], people[1][0]["mask_height"], people[1][0]["mask_width"] = b"zz", HEIGHT, WIDTH
    first, second = load(manifest, replaced(rows, "persons", people))
    assert "expected the size of the image, 32 x 24" in first.person_problem[0][1]
    assert "z <= 0" in first.person_problem[1][1]
    assert second.person_problem[0][0] is PersonStatus.INVALID_LABEL
    assert "instance mask" in second.person_problem[0][1]


def shorten(path) -> None:
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda root: (root / "images/a.jpg").unlink(), ImageStatus.IMAGE_MISSING),
        (lambda root: shorten(root / "images/a.jpg"), ImageStatus.IMAGE_CORRUPT),
        (lambda root: write_image(root, "a.jpg", width=WIDTH + 2), ImageStatus.SIZE_MISMATCH),
        (lambda root: (root / "depth/a.npy").unlink(), ImageStatus.DEPTH_MISSING),
        (lambda root: write_depth(root, "a.jpg", np.zeros((HEIGHT, WIDTH), np.float32)), ImageStatus.DEPTH_INVALID),
    ],
)
def test_what_breaks_after_the_manifest_was_built_costs_one_image(root, spoil, status):
    manifest, _ = build_small(root, NAMES)
    spoil(root)
    first, second = load(manifest)
    assert first.problem[0] is status
    assert first.num_people == 2
    assert str(root) not in first.problem[1]
    assert second.problem is None


def test_a_problem_of_the_label_is_kept_and_the_file_is_not_opened(root):
    cameras = label_arrays(NAMES)["cam_int"]
    cameras[:2, 0, 1] = 5  # skew
    manifest, _ = build_small(root, NAMES, {"cam_int": cameras})
    first, second = load(manifest)
    assert first.problem[0] is ImageStatus.LABEL_INVALID
    assert "then build a new one" in first.problem[1]
    assert first.image is None
    assert second.problem is None


def test_a_file_that_came_after_the_build_is_read_at_its_own_size(root):
    (root / "images" / "a.jpg").unlink()
    manifest, _ = build_small(root, NAMES)
    assert load(manifest)[0].problem == (ImageStatus.IMAGE_MISSING, "image a.jpg does not exist")
    write_image(root, "a.jpg")
    first, second = load(manifest)
    assert (first.problem, first.width, first.height) == (None, WIDTH, HEIGHT)
    assert second.problem is None


def test_a_mask_is_held_against_the_size_of_a_mended_image(root):
    give_masks(root, [random_mask(0), random_mask(1, 10, 12), random_mask(2)])
    (root / "images" / "a.jpg").unlink()
    manifest, _ = build_small(root, NAMES, sidecar="labels/s.parquet")
    write_image(root, "a.jpg")
    first = load(manifest)[0]
    assert first.person_problem[0] is None
    assert first.person_problem[1] is not None
    assert "12 x 10; expected the size of the image, 32 x 24" in first.person_problem[1][1]


def test_whoever_stands_in_two_rows_is_measured_once(root):
    arrays = label_arrays(NAMES)
    for name in ("pose_cam", "shape", "trans_cam", "center", "scale"):
        arrays[name][1] = arrays[name][0]
    manifest, report = build_small(root, NAMES, arrays)
    first, second = load(manifest)
    assert first.person_problem == [
        None,
        (PersonStatus.DUPLICATE, "the same person as person 0 (label row 0) of this image"),
    ]
    assert first.same_as.tolist() == [-1, 0]
    assert second.same_as is None
    assert report.person_problems == {"duplicate, the same person as another label row of the image": 1}
    found = read_findings(manifest.path).to_pylist()
    assert [(row["kind"], row["image"], row["label_row"], row["used"]) for row in found if row["kind"] == "person"] == [
        ("person", "a.jpg", 1, False)
    ]


def test_a_name_that_leaves_the_folder_is_refused_here_too(root):
    write_image(root, "../secret.jpg")
    manifest, _ = build_small(root, NAMES)
    rows = manifest.read_shard(0)
    first, second = load(manifest, replaced(rows, "image_file", ["../secret.jpg", "b.jpg"]))
    assert first.problem[0] is ImageStatus.IMAGE_CORRUPT
    assert "leaves its folder" in first.problem[1]
    assert second.problem is None


def test_an_unforeseen_error_costs_one_image_and_tells_its_text(root):
    class Broken(DepthFiles):
        def load(self, depth_file, *rest):
            if depth_file == "a.npy":
                raise ZeroDivisionError("unforeseen")
            return super().load(depth_file, *rest)

    manifest, _ = build_small(root, NAMES)
    depth = Broken(manifest.depth_root)
    first, second = SceneLoader(ImageStore(manifest.images_root), depth).load(manifest.read_shard(0))
    assert first.problem is not None
    assert first.problem[0] is ImageStatus.INTERNAL_ERROR
    assert "unforeseen" in first.problem[1]
    assert second.problem is None


@pytest.mark.parametrize("where", ["simplejpeg.decode_jpeg", "dto_pipeline.models.depth.read_npy"])
def test_memory_that_ran_out_is_no_fault_of_the_image_or_its_depth(root, monkeypatch, where):
    manifest, _ = build_small(root, NAMES)

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(where, fail)
    scenes = load(manifest)
    assert {scene.problem for scene in scenes} == {(ImageStatus.OUT_OF_MEMORY, "memory ran out while it was loaded")}


def test_slices_of_a_shard_load_their_own_people(root):
    manifest, _ = build_small(root, NAMES)
    (scene,) = load(manifest, manifest.read_shard(0).slice(1, 1))
    assert scene.image_id == "small/b.jpg"
    assert scene.source_row.tolist() == [2]
    assert load(manifest, manifest.read_shard(0).slice(0, 0)) == []


def test_without_a_depth_source_disparity_is_left_to_a_later_stage(root):
    manifest, _ = build_small(root, NAMES)
    scene = SceneLoader(ImageStore(manifest.images_root), None).load(manifest.read_shard(0))[0]
    assert scene.problem is None
    assert scene.disparity is None
    assert "depth" not in scene.origin
