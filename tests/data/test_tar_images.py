"""Images read from their place in tars: the join of label names with members, and the store."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dto_pipeline.data.image_index import ImageIndex
from dto_pipeline.data.images import ImageCorrupt, ImageMissing
from dto_pipeline.data.tars import TarIndexError, locate_images, open_images, place_in_tars, tar_index_path
from tests.tars import jpeg, make_index, write_tar


def image_index(names):
    rows = np.arange(len(names))
    return ImageIndex(names, [name.rpartition("/")[2] for name in names], {}, rows, np.arange(len(names) + 1))


def test_corrupt_jpeg_in_the_middle_leaves_its_neighbours(tmp_path):
    files = {"0.jpg": jpeg(10), "1.jpg": jpeg(shade=77)[:200], "2.jpg": jpeg(200)}
    images = make_index(tmp_path, t=files)
    for name, shade in (("0", 10), ("2", 200)):
        assert int(images.read(f"t.tar!{name}.jpg").rgb.mean()) == shade
    with pytest.raises(ImageCorrupt, match=r"image t\.tar!1\.jpg"):
        images.read("t.tar!1.jpg")


def test_size_is_found_behind_long_metadata(tmp_path):
    long = jpeg(comment=b"c" * 60000)
    far = long[:2] + (b"\xff\xe1\xff\x00" + b"e" * (0xFF00 - 2)) * 2 + long[2:]
    images = make_index(tmp_path, t={"near.jpg": jpeg(), "far.jpg": far, "not.jpg": b"text"})
    assert images.size("t.tar!near.jpg") == images.size("t.tar!far.jpg") == (32, 24)
    with pytest.raises(ImageCorrupt, match=r"t\.tar!not\.jpg has no readable header"):
        images.size("t.tar!not.jpg")


def test_images_that_are_in_no_tar_are_missing(tmp_path):
    images = make_index(tmp_path, t={"../up.jpg": jpeg(), "A.jpg": jpeg()})
    for name, message in (
        ("b.jpg", "in none of the tars"),
        ("a.jpg", "in none of the tars"),
        ("t.tar!b.jpg", "has no member"),
        ("u.tar!b.jpg", "does not know the tar"),
    ):
        with pytest.raises(ImageMissing, match=message):
            images.size(name)
    with pytest.raises(ImageCorrupt, match="leaves its folder"):
        images.read("t.tar!../up.jpg")
    (tmp_path / "t.tar").unlink()
    with pytest.raises(ImageMissing, match=r"t\.tar does not exist"):
        images.read("t.tar!A.jpg")


def test_messages_name_no_folder_of_this_machine(tmp_path):
    images = make_index(tmp_path, t={"0.jpg": jpeg()})
    (tmp_path / "t.tar").unlink()
    for name in ("t.tar!0.jpg", "t.tar!1.jpg", "u.tar!0.jpg", "0.jpg"):
        with pytest.raises(ImageMissing) as raised:
            images.read(name)
        assert str(tmp_path) not in str(raised.value)


def test_many_threads_read_many_tars(tmp_path):
    tars = {f"t{k}": {f"{i}.jpg": jpeg(10 * k + i) for i in range(3)} for k in range(20)}
    images = make_index(tmp_path, **tars)
    names = [f"t{k}.tar!{i}.jpg" for i in range(3) for k in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda name: int(images.read(name).rgb.mean()), names))
    assert found == [10 * k + i for i in range(3) for k in range(20)]


def test_label_names_become_addresses_and_the_store_reads_them(tmp_path):
    write_tar(tmp_path / "tars" / "s" / "000000.tar", {"a/b/0.jpg": jpeg(50), "a/b/0.data.pyd": b"x"})
    write_tar(tmp_path / "tars" / "s" / "000001.tar", {"a/b/1.jpg": jpeg(60), "a/b/0.jpg": jpeg(70)})
    names = ["insta-train/a/b/1.jpg", "insta-train/a/b/0.jpg", "insta-train/a/b/9.jpg"]
    manifest = tmp_path / "m.parquet"
    placed = place_in_tars(image_index(names), tmp_path / "tars", 3, tar_index_path(manifest))
    assert placed.index.image_file == ["s/000001.tar!a/b/1.jpg", "s/000000.tar!a/b/0.jpg", names[2]]
    assert placed.index.image_path == ["1.jpg", "0.jpg", "9.jpg"]
    assert placed.repeated == [("s/000000.tar!a/b/0.jpg", "s/000001.tar!a/b/0.jpg")]
    assert [summary.usable for summary in placed.images.summaries] == [2, 2]
    store = open_images(tmp_path / "tars", manifest)
    assert [store.size(name) for name in placed.index.image_file[:2]] == [(32, 24)] * 2
    (tmp_path / "tars" / "plain.jpg").write_bytes(jpeg(80))
    assert int(store.read("plain.jpg").rgb.mean()) == 80
    with pytest.raises(ImageMissing):
        placed.images.size(names[2])


def test_folder_without_tars_is_refused(tmp_path):
    with pytest.raises(TarIndexError, match=r"holds no \*\.tar"):
        place_in_tars(image_index(["0.jpg"]), tmp_path, 1, tmp_path / "i.parquet")


def test_label_names_find_images_under_other_folders(tmp_path):
    index = make_index(tmp_path, t0={"a/b/0.jpg": b"0", "a/b/0.data.pyd": b""}, t1={"a/c/0.jpeg": b"1"})
    names = ["insta-train/a/c/0.jpg", "insta-train/a/b/0.jpg", "insta-train/x/b/0.jpg"]
    addresses, repeated = locate_images(index, names, key_parts=3)
    assert addresses == ["t1.tar!a/c/0.jpeg", "t0.tar!a/b/0.jpg", None]
    assert repeated == []


def test_a_key_in_two_tars_takes_the_first_and_reports_the_other(tmp_path):
    index = make_index(tmp_path, t0={"0.jpg": b"a"}, t1={"0.jpg": b"b", "1.jpg": b"c"})
    addresses, repeated = locate_images(index, ["aic-train/0.jpg", "aic-train/1.jpg"], key_parts=1)
    assert addresses == ["t0.tar!0.jpg", "t1.tar!1.jpg"]
    assert repeated == [("t0.tar!0.jpg", "t1.tar!0.jpg")]


def test_keys_differing_in_extension_follow_the_label(tmp_path):
    index = make_index(tmp_path, t={"0.png": b"a", "0.jpg": b"b", "0.JPEG": b"c", "0.gif": b"d"})
    for name, address in (("0.png", "t.tar!0.png"), ("0.jpeg", "t.tar!0.JPEG"), ("0.bmp", "t.tar!0.jpg")):
        addresses, repeated = locate_images(index, [name], key_parts=1)
        assert addresses == [address]
        assert len(repeated) == 2


def test_keys_differing_in_case_are_not_joined(tmp_path):
    index = make_index(tmp_path, t={"ABC.jpg": b"a", "Both.jpg": b"b", "both.jpg": b"c"})
    assert locate_images(index, ["abc.jpg", "both.jpg"], key_parts=1)[0] == [None, "t.tar!both.jpg"]


def test_files_come_out_of_a_tar_and_a_folder_as_they_are(tmp_path):
    make_index(tmp_path, a={"x.jpg": jpeg(1)})
    (tmp_path / "y.jpg").write_bytes(b"not decoded")
    (tmp_path / "tars.parquet").rename(tar_index_path(tmp_path / "m.parquet"))
    images = open_images(tmp_path, tmp_path / "m.parquet")
    assert images.read_bytes("a.tar!x.jpg") == jpeg(1)
    assert images.read_bytes("y.jpg") == b"not decoded"
    with pytest.raises(ImageMissing):
        images.read_bytes("z.jpg")
    with pytest.raises(ImageCorrupt):
        images.read_bytes("../y.jpg")


def test_a_name_with_further_dots_is_found_by_its_last(tmp_path):
    files = ("cam.0.jpg", "cam.1.jpg", "d/one.a.png", "two.jpg", "key.x.jpg", "x/.jpg")
    index = make_index(tmp_path, t=dict.fromkeys(files, jpeg()))
    names = ["cam.0.jpg", "cam.1.jpg", "cam.2.jpg", "one.a.png", "two.b.jpg", "key.jpg", "cam.jpg", "y/.jpg"]
    at = ["t.tar!cam.0.jpg", "t.tar!cam.1.jpg", None, "t.tar!d/one.a.png", None, None, None, None]
    assert locate_images(index, names, 1) == (at, [])
    with pytest.raises(ImageMissing, match=r"cam\.2\.jpg is in none of the tars, and no file beside them"):
        index.read_bytes("cam.2.jpg")
