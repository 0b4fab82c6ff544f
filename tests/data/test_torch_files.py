"""Files of `torch.save`: what they hold comes back equal, and no claim of theirs costs memory or ends the process."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dto_pipeline.data.smpl_file import SmplFileError, read_smpl
from dto_pipeline.data.torch_files import TorchFileError, read_torch_file, write_torch_file
from tests.limited import run_limited

KINDS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8)
READ = """
import sys
from pathlib import Path
from dto_pipeline.data.smpl_file import read_smpl
from dto_pipeline.data.torch_files import read_torch_file
from dto_pipeline.errors import DtoError
before = peak()
found = {}
for path in sys.argv[1:]:
    for read in (read_torch_file, read_smpl):
        try:
            read(Path(path))
            found[path] = "read"
        except DtoError as error:
            found[path] = str(error)
tell(found=found, memory=peak() - before)
"""


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def state() -> dict[str, Any]:
    """What a training keeps: weights, the state of an optimiser, plain values."""
    network = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    kinds = {str(kind): torch.arange(6).reshape(2, 3).to(kind) for kind in KINDS}
    odd = {"turned": torch.arange(6.0).reshape(2, 3).T, "part": torch.arange(9.0)[2:5], "none": torch.zeros(0, 4)}
    plain = {
        "text": "\u00e4",
        "numbers": [1, -2.5, None, True],
        "scalar": torch.tensor(True),
        "size": torch.Size([2, 3]),
    }
    return {"weights": network.state_dict(), "optimizer": optimizer.state_dict(), **kinds, **odd, **plain}


def test_what_torch_saved_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(state(), path)
    assert same(torch.load(path, weights_only=True), read_torch_file(path))


def test_a_file_from_before_torch_1_6_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(TorchFileError, match=r"before 1\.6 wrote it; torch\.load it and torch\.save it again"):
        read_torch_file(tmp_path / "a.pt")


def test_parameters_come_back_as_tensors_and_shared_storages_stay_shared(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.arange(6.0))
    write_torch_file(tmp_path / "a.pt", OrderedDict(a=weight, b=weight[2:4].detach()))
    found = read_torch_file(tmp_path / "a.pt")
    found["a"][2] = -1
    assert found["b"].tolist() == [-1, 3]
    assert not found["a"].requires_grad


class Rebuilt:
    """Pickles as a call of one of torch's own functions, with arguments torch would never write."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


class Stored:
    """Stands for a storage of `count` floats in what `forged` writes."""

    def __init__(self, count: int, key: str = "0") -> None:
        self.count, self.key = count, key


def forged(path: Path, content: Any, **storages: bytes) -> Path:
    """A zip in torch's layout around any pickle."""

    class Writer(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if isinstance(value, Stored):
                return "storage", torch.FloatStorage, value.key, "cpu", value.count
            return None

    stream = io.BytesIO()
    Writer(stream, 2).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", stream.getvalue())
        archive.writestr("a/byteorder", "little")
        for key, data in (storages or {"0": bytes(400)}).items():
            archive.writestr(f"a/data/{key}", data)
    return path


def strided(offset: int, size: tuple[int, ...], stride: tuple[int, ...], count: int = 100) -> dict[str, Rebuilt]:
    return {"v_template": Rebuilt(torch._utils._rebuild_tensor_v2, Stored(count), offset, size, stride, False, None)}


def sparse(kind: Any, *parts: Any) -> dict[str, Rebuilt]:
    layout = Rebuilt(torch.serialization._get_layout, str(kind))
    return {"J_regressor": Rebuilt(torch._utils._rebuild_sparse_tensor, layout, parts)}


HOSTILE: dict[str, tuple[Any, str]] = {
    "expanded to 19 GB": (strided(0, (6890, 3, 240_000), (0, 0, 0)), "does not lie within its storage"),
    "a stride out of the storage": (strided(0, (2, 2), (99, 99)), "does not lie within its storage"),
    "begins beyond the storage": (strided(1 << 40, (1,), (1,)), "does not lie within its storage"),
    "begins before the storage": (strided(-4, (1,), (1,)), "an array of shape"),
    "a negative stride": (strided(10, (2,), (-1,)), "an array of shape"),
    "a size of 2 ** 62": (strided(0, (1 << 62, 4), (1, 1)), "does not lie within its storage"),
    "nothing, 2 ** 63 times": (strided(0, (0, 1 << 63), (1, 1)), "no file of tensors"),
    "fewer strides than sides": (strided(0, (2, 2), (1,)), "as many strides as sides"),
    "a storage that is not there": (strided(0, (2,), (1,), 101), "is missing or has not"),
    "sparse, indices out of range": (
        sparse(torch.sparse_coo, torch.tensor([[1 << 40], [1 << 40]]), torch.ones(1), torch.Size([24, 6890])),
        "refuses 'torch.",
    ),
    "sparse, negative indices": (
        sparse(torch.sparse_coo, torch.tensor([[-1], [-5]]), torch.ones(1), torch.Size([24, 6890])),
        "refuses 'torch.",
    ),
    "sparse rows": (
        sparse(torch.sparse_csr, torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), torch.Size([1, 1 << 33])),
        "refuses 'torch.",
    ),
    "a function of torch": (Rebuilt(torch.ones, (1 << 20, 1 << 20)), "refuses '__builtin__.getattr'"),
}


def test_no_claim_of_a_tensor_costs_memory_or_ends_the_process(tmp_path: Path) -> None:
    paths = {name: forged(tmp_path / f"{number}.pth", HOSTILE[name][0]) for number, name in enumerate(HOSTILE)}
    told = run_limited(READ, *paths.values())
    for name, path in paths.items():
        assert str(path) in told["found"][str(path)], name
        with pytest.raises(TorchFileError, match=HOSTILE[name][1]):
            read_torch_file(path)
    assert told["memory"] < 100


def test_sparse_tensors_that_torch_itself_saved_are_refused_by_name(tmp_path: Path) -> None:
    for number, tensor in enumerate((torch.eye(3).to_sparse(), torch.eye(3).to_sparse_csr())):
        torch.save({"J_regressor": tensor}, tmp_path / f"{number}.pth")
        with pytest.raises(
            SmplFileError, match=r"not a sound SMPL file: .*refuses 'torch\._utils\._rebuild_sparse_tensor'"
        ):
            read_smpl(tmp_path / f"{number}.pth")


def test_a_changed_byte_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    path = forged(tmp_path / "a.pt", strided(0, (100,), (1,)), **{"0": b"\x01" * 400})
    path.write_bytes(path.read_bytes().replace(b"\x01" * 400, b"\x01" * 399 + b"\x02"))
    with pytest.raises(TorchFileError, match="are not those that were written"):
        read_torch_file(path)


def test_zips_that_torch_does_not_write_are_refused(tmp_path: Path) -> None:
    path = forged(tmp_path / "a.pt", strided(0, (100,), (1,)))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb, zipfile.ZipFile(path) as whole:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(TorchFileError, match="compressed or encrypted"):
        read_torch_file(tmp_path / "bomb.pt")
    with zipfile.ZipFile(tmp_path / "none.pt", "w") as none:
        none.writestr("a.npy", b"")
    with pytest.raises(TorchFileError, match=r"without data\.pkl"):
        read_torch_file(tmp_path / "none.pt")
    with pytest.raises(TorchFileError, match="at most 100 are read"):
        read_torch_file(path, most_bytes=100)


def test_booleans_of_other_values_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(3, dtype=torch.bool)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, b"\0\2\0" if name.endswith("data/0") else whole.read(name))
    with pytest.raises(TorchFileError, match="booleans with other values"):
        read_torch_file(tmp_path / "b.pt")


def test_numpy_values_beside_tensors_are_plain(tmp_path: Path) -> None:
    torch.save({"epoch": np.float64(2.5), "mean": np.arange(3.0)}, tmp_path / "a.pt")
    found = read_torch_file(tmp_path / "a.pt")
    assert found["epoch"] == 2.5
    assert found["mean"].tolist() == [0, 1, 2]
