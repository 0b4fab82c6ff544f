"""What the driver says of a depth network before any worker, and PyTorch, is loaded."""

import json
import logging
import subprocess
import sys

import pytest

from dto_pipeline.config import load_config
from dto_pipeline.data.dataset import SYNTHETIC
from dto_pipeline.data.manifest import Manifest
from dto_pipeline.models.networks import ModelError, identify_networks
from dto_pipeline.run.identity import warn_of_demo_network
from tests.data.small_set import build_small, write_image

RUN = """
import sys
from dto_pipeline.config import load_config
from dto_pipeline.run.driver import run_pipeline
try:
    run_pipeline(sys.argv[1], sys.argv[2], load_config(overrides=[
        "depth.source=model", "depth.model=" + sys.argv[3], "body.model_path=demo", "run.workers=2"]), progress=False)
except Exception as error:
    print(type(error).__name__, error)
print({"torch", "ray", "transformers"} & set(sys.modules))
"""


def network(folder, text):
    folder.mkdir()
    (folder / "config.json").write_text(text)
    return folder


def depth_config(model):
    return load_config(overrides=["depth.source=model", f"depth.model={model}", "body.model_path=demo"])


def test_a_family_nobody_can_feed_is_refused_by_the_driver_without_torch_or_workers(tmp_path):
    write_image(tmp_path, "a.jpg")
    manifest, _ = build_small(tmp_path, ["a.jpg"])
    folder = network(tmp_path / "net", json.dumps({"model_type": "unknown_family"}))
    command = [sys.executable, "-c", RUN, str(manifest.path), str(tmp_path / "run"), str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "ModelError depth.model is of the family 'unknown_family'; expected depth_anything" in said.stdout, said
    assert said.stdout.endswith("set()\n")
    assert not list((tmp_path / "run").rglob("*.parquet"))


@pytest.mark.parametrize("text", ["", "[]", "{}", "{" * 5000, '{"model_type": 3}'])
def test_a_config_that_tells_no_family_is_one_sentence(tmp_path, text):
    folder = network(tmp_path / "net", text)
    with pytest.raises(ModelError, match=r"depth\.model"):
        identify_networks(depth_config(folder))


@pytest.mark.parametrize("name", ["my model/x", "a--b/c"])
@pytest.mark.parametrize("section", ["depth", "masks"])
def test_a_name_that_no_hub_can_have_is_one_sentence(section, name):
    options = ["source=model", f"model={name}", "revision=" + "f" * 40]
    with pytest.raises(ModelError, match=rf"{section}\.model is '{name}'; give a hub name"):
        identify_networks(load_config(overrides=[f"{section}.{option}" for option in options]))


@pytest.mark.parametrize("family", ["depth_anything", "depth_pro"])
def test_known_families_pass(tmp_path, family):
    folder = network(tmp_path / "net", json.dumps({"model_type": family}))
    assert len(identify_networks(depth_config(folder))["depth network"]) == 64  # the sha256 of its files


@pytest.mark.parametrize(
    ("licence", "model", "warns"),
    [
        ("CC BY", "demo", True),
        ("", "demo", True),
        (f"{SYNTHETIC} (Apache-2.0); free to use.", "demo", False),
        ("CC BY", "a/b", False),
    ],
)
def test_the_demos_network_on_other_than_synthetic_pictures_warns(tmp_path, caplog, licence, model, warns):
    write_image(tmp_path, "a.jpg")
    build_small(tmp_path, ["a.jpg"], licence=licence)
    with caplog.at_level(logging.WARNING):
        warn_of_demo_network(depth_config(model), Manifest.open(tmp_path / "small.parquet"))
    assert ("was trained on synthetic crowds only" in caplog.text) == warns
