"""Depth networks: loaded from folders, batched by shape, halved when memory ends, judged image by image."""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForDepthEstimation

from dto_pipeline.config import DEPTH_PRECISIONS, DepthConfig, PipelineConfig
from dto_pipeline.config_tree import ConfigError
from dto_pipeline.models.depth import METRES_PER_DEPTH, DepthInvalid
from dto_pipeline.models.depth_anything import (
    DepthNetwork,
    computing_in,
    halve_weights,
    resolve_precision,
)
from dto_pipeline.models.network_input import resize_to_image, resize_to_network, run_in_batches, stretch_positions
from dto_pipeline.models.networks import (
    ModelError,
    ModelMissing,
    ModelReference,
    check_reference,
    identify,
    licence_lines,
    reference_of,
)
from dto_pipeline.run.identity import hash_settings
from tests.tiny_models import save_classifier, save_depth_anything, save_depth_pro


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_depth_anything(tmp_path_factory.mktemp("models") / "tiny")


def config(folder: Path, **options: object) -> DepthConfig:
    return DepthConfig(source="model", model=str(folder), short_side=28, batch=2, **options)  # type: ignore[arg-type]


def pictures(*shapes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


def test_disparity_is_the_networks_output_at_the_size_of_the_image(folder: Path) -> None:
    network = DepthNetwork(config(folder))
    (image,) = pictures((30, 45))
    (found,) = network.estimate([image])
    with torch.no_grad():
        inputs = resize_to_network(torch.from_numpy(image)[None], (28, 42))
        expected = resize_to_image(network.network(inputs).predicted_depth, 30, 45)[0].numpy()
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.ptp(found) > 1e-3  # pixels matter


def test_images_of_any_shapes_come_back_in_order(folder: Path) -> None:
    network = DepthNetwork(config(folder))
    images = pictures((30, 45), (45, 30), (30, 45), (28, 42), (30, 45), (60, 90))
    together = network.estimate(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = network.estimate([image])
        assert isinstance(found, np.ndarray)
        assert isinstance(alone, np.ndarray)
        assert found.shape == image.shape[:2]
        np.testing.assert_allclose(found, alone, rtol=1e-4)


def test_windows_hold_one_size_each_and_lose_nobody() -> None:
    sizes, asked = [(28, 42), (42, 28), (28, 42), (28, 42), (42, 28)], list[list[int]]()

    def work(positions: list[int]) -> list[int]:
        asked.append(positions)
        return [10 * position for position in positions]

    assert run_in_batches(torch.device("cpu"), sizes, 2, work) == [0, 10, 20, 30, 40]
    assert sorted(asked) == [[0, 2], [1, 4], [3]]


def test_running_out_of_memory_halves_the_batch_and_goes_on(folder: Path) -> None:
    network = DepthNetwork(config(folder))
    network.at_once = 2  # as on a GPU
    images = pictures(*[(30, 45)] * 2)
    expected = [network.estimate([image])[0] for image in images]
    inner, sizes = network.network, []

    def forward(pixel_values: torch.Tensor) -> object:
        sizes.append(len(pixel_values))
        if len(pixel_values) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(pixel_values=pixel_values)

    network.network = forward
    found = network.estimate(images)
    assert sizes == [2, 1, 1]
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))  # type: ignore[arg-type]


def test_an_image_that_does_not_fit_into_memory_alone_raises(folder: Path) -> None:
    network = DepthNetwork(config(folder))
    network.network = MagicMock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        network.estimate(pictures((30, 45)))


def test_a_map_that_is_not_finite_or_zero_everywhere_is_that_images_failure_only(folder: Path) -> None:
    network = DepthNetwork(config(folder))
    inner = network.network

    def forward(pixel_values: torch.Tensor) -> object:
        output = inner(pixel_values=pixel_values)
        output.predicted_depth[1, 3, 4] = torch.nan
        output.predicted_depth[2] = 0
        return output

    network.network, network.at_once = forward, 3  # as on a GPU
    good, bad, dark = network.estimate(pictures((30, 45), (30, 45), (30, 45)))
    assert isinstance(good, np.ndarray)
    assert isinstance(bad, DepthInvalid)
    assert "not finite" in str(bad)
    assert isinstance(dark, DepthInvalid)
    assert "no disparity above zero" in str(dark)


def test_metric_networks_give_disparity_in_the_methods_units(tmp_path: Path) -> None:
    network = DepthNetwork(config(save_depth_anything(tmp_path / "metric", metric=True)))
    (image,) = pictures((28, 42))
    (found,) = network.estimate([image])
    assert isinstance(found, np.ndarray)
    with torch.no_grad():
        metres = network.network(resize_to_network(torch.from_numpy(image)[None], (28, 42))).predicted_depth[0].numpy()
    np.testing.assert_allclose(found, METRES_PER_DEPTH / metres, rtol=1e-4)
    assert network.facts["depth_kind"] == "metric_depth"


def test_depth_pro_gives_maps_of_the_size_of_each_image(tmp_path: Path) -> None:
    network = DepthNetwork(config(save_depth_pro(tmp_path / "pro")))
    found = network.estimate(pictures((30, 45), (40, 30)))
    assert [values.shape for values in found if isinstance(values, np.ndarray)] == [(30, 45), (40, 30)]
    assert network.recipe.size(30, 45) == (128, 128)


def test_depth_pro_takes_the_labels_focal_length_and_each_image_its_own(tmp_path: Path) -> None:
    network = DepthNetwork(config(save_depth_pro(tmp_path / "pro")))
    network.at_once = 2  # as on a GPU
    images = pictures((30, 45), (30, 45))
    once, longer = (np.stack(network.estimate(images, focal)) for focal in ([50.0, 50.0], [50.0, 100.0]))  # type: ignore[arg-type]
    np.testing.assert_allclose(longer[0], once[0], rtol=1e-4)
    inside = once[1] > 1  # random weights: much lies at the border of its range
    np.testing.assert_allclose(longer[1][inside], once[1][inside] / 2, rtol=1e-4)  # twice the length: twice as far
    assert inside.any()


def test_a_folder_is_identified_by_its_content(folder: Path, tmp_path: Path) -> None:
    network = DepthNetwork(config(folder))
    assert network.facts["depth_model"] == "depth_anything"  # what config.json says it is, wherever it lies
    assert len(network.facts["depth_sha256"]) == 64
    assert network.origin == f"disparity of depth_anything@{network.facts['depth_sha256'][:12]}"
    other = save_depth_anything(tmp_path / "tiny", seed=1)
    assert identify(ModelReference(str(other))).sha256 != network.facts["depth_sha256"]


def test_the_demos_network_is_in_the_package_and_says_its_licence() -> None:
    network = DepthNetwork(DepthConfig(source="model", model="demo", short_side=28))
    assert "Apache-2.0" in network.facts["depth_licence"]
    (found,) = network.estimate(pictures((30, 45)))
    assert isinstance(found, np.ndarray)


def test_a_missing_folder_says_what_is_expected_there(tmp_path: Path) -> None:
    with pytest.raises(ModelMissing, match=r"nowhere.*config\.json and model\.safetensors"):
        DepthNetwork(config(tmp_path / "nowhere"))


def test_a_missing_hub_model_says_what_to_download_and_where_to_put_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    name, commit = "depth-anything/Depth-Anything-V2-Large-hf", "0" * 40
    with pytest.raises(ModelMissing) as caught:
        DepthNetwork(DepthConfig(source="model", model=name, revision=commit, offline=True))
    message = str(caught.value)
    assert f"hf download {name} --revision {commit} --local-dir FOLDER" in message
    assert "depth.model=FOLDER" in message


def test_a_hub_model_must_be_pinned_to_a_commit() -> None:
    for revision in ("", "main"):
        with pytest.raises(ModelError, match="pinned to a commit"):
            DepthNetwork(DepthConfig(source="model", model="apple/DepthPro-hf", revision=revision))


def test_a_network_of_another_task_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"depth\.model is of the family .vit.; expected depth_anything"):
        DepthNetwork(config(save_classifier(tmp_path / "classifier", ("a", "b"))))


def test_a_hub_network_of_another_task_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    folder = tmp_path / "models--a--b" / "snapshots" / commit
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "vit"}')  # and nothing else
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    depth = DepthConfig(source="model", model="a/b", revision=commit, offline=True)
    for refuse in (lambda: check_reference(reference_of("depth", depth)), lambda: DepthNetwork(depth)):
        with pytest.raises(ModelError, match=r"depth\.model is of the family .vit.; expected depth_anything"):
            refuse()


def test_every_size_of_depth_anything_has_its_licence_stated() -> None:
    text = "; ".join(licence_lines())
    small, large = "depth-anything/Depth-Anything-V2-Small-hf", "depth-anything/Depth-Anything-V2-Large-hf"
    apache, by_nc = text.index("Apache-2.0:"), text.index("CC BY-NC 4.0:")
    assert apache < text.index(small) < by_nc < text.index(large)


def test_bfloat16_does_not_cut_disparity_into_steps(folder: Path) -> None:
    network = DepthNetwork(config(folder)).network
    inputs = resize_to_network(torch.from_numpy(pictures((56, 84))[0])[None], (56, 84)).to(torch.bfloat16)
    coarse = copy.deepcopy(network).to(torch.bfloat16)
    assert halve_weights(network, torch.bfloat16)
    assert network.head.conv3.layer.weight.dtype == torch.float32
    with torch.no_grad():
        steps, fine = (len(torch.unique(one(inputs).predicted_depth)) for one in (coarse, network))
    assert fine > 3 * steps


def test_weights_in_bfloat16_see_what_float32_sees() -> None:
    """On the demo's trained network; relative depth of places, whose scale is free."""
    network = DepthNetwork(DepthConfig(source="model", model="demo", short_side=224))
    image = torch.from_numpy(pictures((240, 320))[0])[None]
    inputs = resize_to_network(image, (224, 294))
    with torch.no_grad():
        exact = network.network(inputs).predicted_depth.double()
        assert halve_weights(network.network, torch.bfloat16)
        found = network.network(inputs.to(torch.bfloat16)).predicted_depth
    assert found.dtype == torch.float32
    ratio = found.double() / exact
    assert (ratio / ratio.median() - 1).abs().quantile(0.95) < 0.02


def test_depth_pro_keeps_its_weights_and_its_last_layer_computes_in_float32(tmp_path: Path) -> None:
    network = DepthNetwork(config(save_depth_pro(tmp_path / "pro"))).network
    assert not halve_weights(network, torch.bfloat16)
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert network(torch.rand(1, 3, 128, 128)).predicted_depth.dtype == torch.float32


def test_a_depth_network_must_be_named_because_there_is_no_default() -> None:
    assert DepthConfig().model == ""
    with pytest.raises(ConfigError, match=r"depth\.model is empty; set depth\.model to .* see docs/seeing\.md"):
        PipelineConfig(depth=DepthConfig(source="model"))


def test_unknown_sources_and_kinds_are_refused() -> None:
    for options in ({"source": "magic"}, {"kind": "inches"}, {"batch": -1}, {"short_side": 3}, {"scale": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            PipelineConfig(depth=DepthConfig(**options))


def config_said(folder: Path, target: Path, **words: Any) -> Path:
    """A copy of a network's folder whose config.json says other words; None takes one out."""
    shutil.copytree(folder, target)
    told = json.loads((target / "config.json").read_text()) | words
    (target / "config.json").write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    return target


def rename(weights: dict[str, np.ndarray]) -> None:
    for name in [name for name in weights if name.startswith("backbone.")]:
        weights["pretrained." + name.removeprefix("backbone.")] = weights.pop(name)


BIAS, DEEPER = "head.conv1.bias", "backbone.encoder.layer.4.norm1.bias"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("head.conv3.weight"), r"depth\.model .* missing \(1\): head\.conv3\.weight"),
        (
            lambda weights: weights.pop("backbone.embeddings.position_embeddings"),
            r"missing \(1\): .*position_embeddings",
        ),
        (rename, r"missing .*backbone\.embeddings\.cls_token.*and \d+ more"),
        (lambda weights: weights.update({BIAS: np.zeros(99, np.float32)}), rf"of another shape \(1\): {BIAS}"),
        (lambda weights: weights.update({DEEPER: np.zeros(16, np.float32)}), rf"unexpected \(1\): {DEEPER}"),
    ],
)
def test_weights_that_do_not_fit_the_config_json_are_refused_by_name(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, np.ndarray]], None], words: str
) -> None:
    target = shutil.copytree(folder, tmp_path / "changed")
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=words):
        DepthNetwork(config(target))


@pytest.mark.parametrize(
    "words",
    [
        {"depth_estimation": "metric"},
        {"depth_type": "Metric"},
        {"is_metric": True},
        {"max_depth": 20},
        {"max_depth": 80, "depth_estimation": "metric"},
    ],
)
def test_a_metric_network_whose_config_says_so_in_other_words_is_refused(
    folder: Path, tmp_path: Path, words: dict[str, object]
) -> None:
    for spelt in (words, {**words, "depth_estimation_type": None}):
        target = config_said(folder, tmp_path / str(len(spelt)), **spelt)
        with pytest.raises(ModelError, match=r'write "depth_estimation_type": "metric"'):
            DepthNetwork(config(target))


def test_a_metric_network_without_its_largest_depth_is_refused(tmp_path: Path) -> None:
    folder = save_depth_anything(tmp_path / "metric", metric=True)
    with pytest.raises(ModelError, match=r"max_depth 1, but depth_estimation_type.* is 'metric'"):
        DepthNetwork(config(config_said(folder, tmp_path / "one", max_depth=1)))


@pytest.mark.parametrize("words", [{"max_depth": 1}, {"depth_estimation_type": None}, {"note": "not a metric network"}])
def test_a_relative_network_may_say_so_in_any_of_the_usual_ways(
    folder: Path, tmp_path: Path, words: dict[str, Any]
) -> None:
    assert DepthNetwork(config(config_said(folder, tmp_path / "said", **words))).facts["depth_kind"] == "disparity"


def test_files_that_cannot_be_loaded_are_refused_in_one_sentence_whatever_they_raise(
    folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"depth\.model .* cannot be loaded"):
        DepthNetwork(config(config_said(folder, tmp_path / "float", max_depth=80.5)))
    cut = shutil.copytree(folder, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"depth\.model .* cannot be loaded"):
        DepthNetwork(config(cut))


def test_only_the_network_itself_stretches_positions_as_published(folder: Path) -> None:
    network = DepthNetwork(config(folder))
    assert network.facts["depth_positions"] == "stretched as published (offset of 0.1 patch)"
    table = network.network.backbone.embeddings.position_embeddings
    assert np.array_equal(network.positions_at((56, 56)), table[0].detach().numpy())
    untouched = AutoModelForDepthEstimation.from_pretrained(folder).backbone.embeddings
    tokens = torch.zeros(1, 7, 16)
    theirs = untouched.interpolate_pos_encoding(tokens, 28, 42)[0].detach().numpy()
    assert theirs.shape == network.positions_at((28, 42)).shape
    assert np.abs(theirs - network.positions_at((28, 42))).max() > 1e-4


def test_stretched_positions_follow_the_published_formula() -> None:
    """Row i of r reads the table of side n at (i + 0.5) n / (r + 0.1) - 0.5, cubic a = -0.75, borders repeated."""
    side = 9
    table = np.random.default_rng(0).normal(size=(side * side, 2)).astype(np.float32)
    for rows, columns in ((7, 12), (9, 10), (30, 9)):
        found = stretch_positions(torch.from_numpy(table), rows, columns).numpy()
        along = [_cubic_weights(side, count) for count in (rows, columns)]
        expected = np.einsum("ri,cj,ijk->rck", *along, table.reshape(side, side, 2).astype(np.float64))
        np.testing.assert_allclose(found, expected, atol=1e-5)


def _cubic_weights(side: int, count: int) -> np.ndarray:
    """(count, side) share of each entry of a table in each stretched one."""
    a, weights = -0.75, np.zeros((count, side))
    for row in range(count):
        at = (row + 0.5) * side / (count + 0.1) - 0.5
        for entry in range(math.floor(at) - 1, math.floor(at) + 3):
            x = abs(at - entry)
            near, far = (a + 2) * x**3 - (a + 3) * x**2 + 1, a * (x**3 - 5 * x**2 + 8 * x - 4)
            weights[row, min(max(entry, 0), side - 1)] += near if x <= 1 else far
    return weights


def test_maps_of_the_first_version_come_back_without_aligned_corners(tmp_path: Path) -> None:
    assert DepthNetwork(config(save_depth_anything(tmp_path / "v2"))).facts["depth_way_back"] == (
        "bilinear, corner on corner"
    )
    network = DepthNetwork(config(save_depth_anything(tmp_path / "v1", layers=6)))  # features of its last four blocks
    assert network.facts["depth_way_back"] == "bilinear, corners not aligned"
    (image,) = pictures((30, 45))
    (found,) = network.estimate([image])
    with torch.no_grad():
        output = network.network(resize_to_network(torch.from_numpy(image)[None], (28, 42))).predicted_depth
    expected = torch.nn.functional.interpolate(output[:, None], (30, 45), mode="bilinear", align_corners=False)
    np.testing.assert_allclose(found, expected[0, 0].numpy(), rtol=1e-5)  # type: ignore[arg-type]


def test_precision_is_recorded_and_one_that_a_cpu_lacks_is_refused(folder: Path) -> None:
    assert DepthNetwork(config(folder)).facts["depth_precision"] == "float32"
    assert resolve_precision("auto", torch.device("cuda")) == "bfloat16"
    for precision in ("tf32", "float16", "bfloat16"):
        assert resolve_precision(precision, torch.device("cuda")) == precision
        with pytest.raises(ModelError, match=r"depth\.precision is .* needs a GPU"):
            DepthNetwork(config(folder, precision=precision))
    with pytest.raises(ConfigError, match=r"depth\.precision"):
        PipelineConfig(depth=DepthConfig(precision="half"))
    depths = [DepthConfig(source="model", model="demo", precision=one) for one in ("auto", "float32", "tf32")]
    hashes = {hash_settings(PipelineConfig(depth=depth).to_dict(), {}) for depth in depths}
    assert len(hashes) == 3


def test_tf32_is_used_only_where_it_is_asked_for_and_only_while_a_network_computes() -> None:
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    for precision in DEPTH_PRECISIONS[1:]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # autocast says that there is no CUDA here
            with computing_in(precision, torch.device("cuda")):
                assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_sees_what_the_cpu_sees(folder: Path) -> None:
    images = pictures((30, 45), (45, 30), (30, 45))
    expected = DepthNetwork(config(folder)).estimate(images)
    found = DepthNetwork(config(folder), "cuda").estimate(images)
    for gpu, cpu in zip(found, expected, strict=True):
        assert isinstance(gpu, np.ndarray)
        assert isinstance(cpu, np.ndarray)
        np.testing.assert_allclose(gpu, cpu, rtol=0.05)  # bfloat16
