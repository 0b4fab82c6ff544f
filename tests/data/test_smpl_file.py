"""SMPL files of every public format read back to equal numbers, and wrong files are told apart."""

from __future__ import annotations

import logging
import pickle
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import smplx
import torch
from scipy import sparse

from dto_pipeline.data import smpl_file
from dto_pipeline.data.inert_pickle import UnsafePickle
from dto_pipeline.data.smpl_file import (
    Model,
    SmplFileError,
    add_kid_axis,
    import_smpl,
    read_smpl,
    write_smpl_npz,
)
from dto_pipeline.models.body import load_body
from tests.official_smpl import chumpy_array, official_dict, official_modules, python2_dumps, with_state
from tests.pickle_streams import SENTINEL, Armed

ASSETS = Path(str(files("dto_pipeline.assets")))
KID_TEMPLATE = np.load(ASSETS / "extra.npz")["smpl_kid_template"]


@pytest.fixture(scope="module")
def plain() -> Model:
    return read_smpl(ASSETS / "SMPL_NEUTRAL.npz")


def _assert_equal(found: Model, expected: Model) -> None:
    for key, array in expected.items():
        assert np.array_equal(found[key], array), key


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# official pickles


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_python_2_file_with_chumpy_and_scipy_reads_back_equal(protocol: int, plain: Model, tmp_path: Path) -> None:
    small = {**plain, "posedirs": plain["posedirs"].astype(np.float16)}  # text protocols are slow on 17 MB
    with official_modules() as classes:
        data = python2_dumps(official_dict(classes, small), protocol)
        control = pickle.loads(data, encoding="latin1")
    assert np.array_equal(control["v_template"].x, plain["v_template"])
    assert b"numpy._core" not in data
    found = read_smpl(_write(tmp_path / "SMPL_NEUTRAL.pkl", data))
    _assert_equal(found, {**plain, "posedirs": small["posedirs"]})
    assert found["v_template"].dtype == np.float64


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_file_saved_again_by_python_3_reads_back_equal(protocol: int, plain: Model, tmp_path: Path) -> None:
    with official_modules() as classes:
        model = {**official_dict(classes, plain), "J_regressor": sparse.csc_matrix(plain["J_regressor"])}
        data = pickle.dumps(model, protocol)
    _assert_equal(read_smpl(_write(tmp_path / "model.pkl", data)), plain)


def test_a_chumpy_selection_is_followed(plain: Model, tmp_path: Path) -> None:
    wide = np.concatenate([plain["shapedirs"], np.ones((6890, 3, 4), np.float32)], axis=-1)
    chosen = np.arange(wide.size).reshape(wide.shape)[:, :, :10]
    with official_modules() as classes:
        source = chumpy_array(classes, wide)
        select = with_state(classes["Select"], a=source, idxs=chosen.ravel(), preferred_shape=chosen.shape, _itr=None)
        data = pickle.dumps({**official_dict(classes, plain), "shapedirs": select}, 2)
    _assert_equal(read_smpl(_write(tmp_path / "model.pkl", data)), plain)


def test_300_directions_are_cut_to_ten_with_a_line_in_the_log(
    plain: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    wide = np.zeros((6890, 3, 300), np.float16)
    wide[..., :10] = 1.0
    with caplog.at_level(logging.WARNING):
        found = read_smpl(_write(tmp_path / "v11.pkl", pickle.dumps({**plain, "shapedirs": wide})))
    assert found["shapedirs"].shape == (6890, 3, 10)
    assert found["shapedirs"].min() == 1.0
    assert "300 shape directions; the first 10 are kept" in caplog.text


@pytest.mark.parametrize("root", [4294967295, -1, 0])
def test_however_the_root_is_marked_its_parent_is_minus_one(root: int, plain: Model, tmp_path: Path) -> None:
    tree = plain["kintree_table"].copy()
    tree[0, 0] = root
    found = read_smpl(_write(tmp_path / "model.pkl", pickle.dumps({**plain, "kintree_table": tree})))
    assert np.array_equal(found["kintree_table"], plain["kintree_table"])


def test_reading_an_official_file_needs_no_chumpy(plain: Model, tmp_path: Path) -> None:
    with official_modules() as classes:
        _write(tmp_path / "model.pkl", python2_dumps(official_dict(classes, plain), 2))
    lines = [
        "import sys; from dto_pipeline.data.smpl_file import read_smpl",
        "sys.modules.update(dict.fromkeys(['chumpy']))  # None: importing them raises",
        f"print(read_smpl({str(tmp_path / 'model.pkl')!r})['J_regressor'].shape)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(24, 6890)", done.stderr


# SMPL+A


def test_the_kid_axis_is_the_published_formula(plain: Model) -> None:
    template = KID_TEMPLATE
    model = add_kid_axis(plain, template + 5.0)  # anywhere in space
    assert model["shapedirs"].shape[-1] == 11
    body = model["v_template"] + model["shapedirs"][..., 10]
    assert np.abs(body - (template - template.mean(axis=0))).max() < 1e-6
    assert np.array_equal(model["shapedirs"][..., :10], plain["shapedirs"])


def test_the_kid_axis_equals_what_smplx_builds(plain: Model, tmp_path: Path) -> None:
    model = add_kid_axis(plain, KID_TEMPLATE)
    struct = smplx.utils.Struct(**plain)
    np.save(tmp_path / "kid.npy", KID_TEMPLATE)
    theirs = smplx.SMPL("", data_struct=struct, age="kid", kid_template_path=str(tmp_path / "kid.npy"))
    assert np.abs(theirs.shapedirs.numpy() - model["shapedirs"]).max() < 1e-6


def _checkpoint(plain: Model, template: np.ndarray) -> dict[str, torch.Tensor]:
    """The tensors that ROMP's converter saves."""
    kid = (template - template.mean(axis=0) - plain["v_template"])[..., None]
    arrays = {
        **{key: plain[key] for key in ("v_template", "weights", "J_regressor", "shapedirs")},
        "smpla_shapedirs": np.concatenate([plain["shapedirs"], kid], axis=-1),
        "posedirs": plain["posedirs"].reshape(-1, 207).T,
        "f": plain["f"].astype(np.float32),
    }
    tensors = {key: torch.from_numpy(np.ascontiguousarray(array)).float() for key, array in arrays.items()}
    return {**tensors, "kintree_table": torch.from_numpy(plain["kintree_table"][0]).long()}


def test_a_smpla_checkpoint_reads_back_equal(plain: Model, tmp_path: Path) -> None:
    template = KID_TEMPLATE
    path = tmp_path / "SMPLA_NEUTRAL.pth"
    torch.save(_checkpoint(plain, template), path)
    found = read_smpl(path)
    assert np.allclose(found["shapedirs"], add_kid_axis(plain, template)["shapedirs"], atol=1e-6)
    _assert_equal({**found, "shapedirs": found["shapedirs"][..., :10]}, plain)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"v_template": Armed()}, tmp_path / "SMPLA_NEUTRAL.pth")
    with pytest.raises(SmplFileError, match="not a sound SMPL file"):
        read_smpl(tmp_path / "SMPLA_NEUTRAL.pth")
    assert not (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (lambda template: template[:100], "expected finite floats"),
        (lambda template: template * np.nan, "expected finite floats"),
        (lambda template: template.astype(int), "expected finite floats"),
        (lambda template: template * 3.0, "infant template in metres"),
        (lambda template: template * 0.0, "infant template in metres"),
    ],
)
def test_what_is_no_kid_template_is_refused(change: Callable[[Any], Any], mentions: str, plain: Model) -> None:
    with pytest.raises(SmplFileError, match=mentions):
        add_kid_axis(plain, change(KID_TEMPLATE))


def test_a_second_kid_axis_is_refused() -> None:
    with pytest.raises(SmplFileError, match="has a kid axis"):
        add_kid_axis(read_smpl(ASSETS / "SMPLA_NEUTRAL.npz"), KID_TEMPLATE)


# writing


def test_an_npz_reads_back_equal_and_has_equal_bytes(plain: Model, tmp_path: Path) -> None:
    first = write_smpl_npz(plain, tmp_path / "a" / "model.npz")
    second = write_smpl_npz(read_smpl(first), tmp_path / "model.npz")
    assert first.read_bytes() == second.read_bytes()
    _assert_equal(read_smpl(first), plain)
    with np.load(first, allow_pickle=False) as archive:
        assert set(archive.files) == set(plain)


def test_import_writes_what_the_body_model_loads(plain: Model, tmp_path: Path) -> None:
    with official_modules() as classes:
        source = _write(tmp_path / "SMPL_NEUTRAL.pkl", python2_dumps(official_dict(classes, plain), 2))
    np.save(tmp_path / "kid.npy", KID_TEMPLATE)
    written = import_smpl(source, tmp_path / "out", tmp_path / "kid.npy")
    assert [path.name for path in written] == ["SMPLA_NEUTRAL.npz", "SMPL_NEUTRAL.npz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(path.name for path in written)
    imported, demo_body = load_body(tmp_path / "out"), load_body("demo")
    betas = torch.tensor([[0.5, -0.5, 0, 0, 0, 0, 0, 0, 0, 0, 0.6]])
    pose, transl = torch.full((1, 72), 0.1), torch.zeros(1, 3)
    assert imported.has_kid_axis
    found, expected = imported.vertices(pose, betas, transl), demo_body.vertices(pose, betas, transl)
    assert torch.allclose(found, expected, atol=1e-6)
    assert not load_body(written[1]).has_kid_axis


def test_an_import_that_is_cut_off_leaves_the_whole_body_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with SMPL_NEUTRAL.npz alone is a body without kid axis, and was taken for one."""

    def die(*_: object) -> Path:
        raise KeyboardInterrupt

    def write_first(model: Model, path: Path) -> Path:
        monkeypatch.setattr(smpl_file, "write_smpl_npz", die)
        return write_smpl_npz(model, path)

    monkeypatch.setattr(smpl_file, "write_smpl_npz", write_first)
    with pytest.raises(KeyboardInterrupt):
        import_smpl(ASSETS / "SMPLA_NEUTRAL.npz", tmp_path)
    assert load_body(tmp_path).has_kid_axis


def test_a_model_without_kid_axis_is_not_hidden_behind_another_import(tmp_path: Path) -> None:
    import_smpl(ASSETS / "SMPLA_NEUTRAL.npz", tmp_path)
    before = (tmp_path / "SMPL_NEUTRAL.npz").stat().st_mtime_ns
    with pytest.raises(SmplFileError, match=r"SMPLA_NEUTRAL\.npz of another import.*--kid-template"):
        import_smpl(ASSETS / "SMPL_NEUTRAL.npz", tmp_path)
    assert (tmp_path / "SMPL_NEUTRAL.npz").stat().st_mtime_ns == before


def test_nothing_is_written_if_the_kid_template_is_wrong(tmp_path: Path) -> None:
    for template in (np.zeros((10, 3)), np.array([Armed()] * 3)):
        np.save(tmp_path / "kid.npy", template, allow_pickle=True)
        with pytest.raises(SmplFileError, match=r"kid\.npy is not a kid template"):
            import_smpl(ASSETS / "SMPL_NEUTRAL.npz", tmp_path / "out", tmp_path / "kid.npy")
    assert not (tmp_path / "out").exists()


# wrong files


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        ({"v_template": np.zeros((10475, 3))}, "v_template has shape .*not SMPL-X"),
        ({"v_template": np.zeros((778, 3))}, "v_template has shape .*not SMPL-X"),
        ({"weights": np.zeros((6890, 52))}, "weights has shape .*not SMPL-X"),
        ({"weights": None}, "lacks the array 'weights'"),
        ({"J_regressor": np.zeros((24, 100))}, r"J_regressor has shape \(24, 100\)"),
        ({"shapedirs": np.zeros((6890, 3))}, "shapedirs has shape"),
        ({"shapedirs": np.zeros((6890, 3, 4))}, "4 shape directions"),
        ({"posedirs": np.zeros((6890, 3, 486))}, "posedirs has shape"),
        ({"v_template": np.full((6890, 3), np.nan)}, "not all finite"),
        ({"v_template": np.full((6890, 3), "x")}, "not all finite"),
        ({"f": np.full((13776, 3), 6890)}, "outside the 6890 vertices"),
        ({"kintree_table": np.zeros((2, 24))}, "every joint after its parent"),
    ],
)
def test_another_model_is_named_and_a_wrong_array_is_named(
    change: dict[str, Any], mentions: str, plain: Model, tmp_path: Path
) -> None:
    path = _write(tmp_path / "model.pkl", pickle.dumps({**plain, **change}))
    with pytest.raises(SmplFileError, match=mentions) as refusal:
        read_smpl(path)
    assert str(path) in str(refusal.value)


def test_an_unknown_class_is_named(plain: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = _write(tmp_path / "model.pkl", pickle.dumps({**plain, "extra": Armed()}))
    with pytest.raises(UnsafePickle, match=r"model\.pkl.*refuses '(posix|nt)\.system'"):
        read_smpl(path)
    assert not (tmp_path / SENTINEL).exists()


@pytest.mark.parametrize(
    ("name", "data", "mentions"),
    [
        ("model.pkl", b"", "not a sound SMPL file"),
        ("model.pkl", pickle.dumps([1, 2]), "holds a list"),
        ("model.pkl", pickle.dumps({}), "lacks the array"),
        ("model.npz", b"PK\x03\x04 and then nothing", "not a whole npz"),
        ("model.pth", b"not a sound SMPL file", "not a sound SMPL file"),
        ("model.obj", b"v 0 0 0\nv 0 0 1\n", "not a sound SMPL file"),
    ],
)
def test_what_is_no_model_at_all_is_refused(name: str, data: bytes, mentions: str, tmp_path: Path) -> None:
    with pytest.raises(SmplFileError, match=mentions):
        read_smpl(_write(tmp_path / name, data))


def test_a_foreign_npz_is_refused_with_the_arrays_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "foreign.npz", vertices=np.zeros(3), faces=np.zeros(3))
    with pytest.raises(SmplFileError, match="lacks the array 'v_template'; found 'vertices', 'faces'; expected"):
        read_smpl(tmp_path / "foreign.npz")
    np.savez(tmp_path / "half.npz", v_template=np.zeros((6890, 3)), other=np.zeros(3))
    with pytest.raises(SmplFileError, match="lacks the array 'shapedirs'; found 'v_template', 'other'; expected"):
        read_smpl(tmp_path / "half.npz")


def test_a_file_cut_short_is_refused(plain: Model, tmp_path: Path) -> None:
    for name, data in (("model.pkl", pickle.dumps(plain)), ("model.npz", (ASSETS / "SMPL_NEUTRAL.npz").read_bytes())):
        with pytest.raises(SmplFileError):
            read_smpl(_write(tmp_path / name, data[: len(data) // 2]))


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_smpl(tmp_path / "nothing.pkl")
