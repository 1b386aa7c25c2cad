"""model.keras contains the model and its metadata; --init_from copies weights that fit, or none at all."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vidpipe.config import ClipConfig
from vidpipe.model.fused import FusedModel
from vidpipe.model.heads import HEADS
from vidpipe.model.model_file import (
    METADATA_NAME,
    ModelError,
    ModelMetadata,
    load_model,
    load_weights,
    save_model,
)

Build = Callable[..., FusedModel]
Inputs = dict[str, np.ndarray]
CLASSES = ("a", "b", "c")
METADATA = ModelMetadata(CLASSES, ClipConfig(num_frames=6, image_size=32), 4)


def test_the_spec_has_the_frames_that_the_model_takes() -> None:
    spec = METADATA.spec
    assert (spec.num_frames, spec.height, spec.width) == (4, 32, 32)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_save_and_load(build: Build, inputs: Inputs, tmp_path: Path, synced: set[int], head: str) -> None:
    model = build(head).fused
    save_model(model, METADATA, tmp_path / "model.keras")
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    assert {path.stat().st_ino for path in (tmp_path, tmp_path / "model.keras")} <= synced
    loaded, metadata = load_model(tmp_path / "model.keras")
    assert metadata == METADATA
    assert (loaded(inputs).numpy() == model(inputs).numpy()).all()


def rewrite_metadata(path: Path, values: object) -> None:
    """Replaces the metadata in a model file."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, json.dumps(values) if name == METADATA_NAME else content)


@pytest.fixture(scope="module")
def saved(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a model with the head `motion`."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    save_model(build("motion").fused, METADATA, path)
    return path


def test_a_file_of_version_0_1_without_num_frames_takes_all_stored_frames(
    saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    rewrite_metadata(path, json.loads(METADATA.to_json()) | {"num_frames": None})
    _, metadata = load_model(path)
    assert metadata.num_frames == 6


@pytest.mark.parametrize("content", ["text", "no_metadata", "truncated", "other_settings", "other_values"])
def test_a_file_that_vidpipe_did_not_write_is_rejected(saved: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    if content == "text":
        path.write_text("hello")
    elif content == "truncated":
        path.write_bytes(path.read_bytes()[:-1000])
    elif content == "no_metadata":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("config.json", "{}")
    elif content == "other_settings":
        rewrite_metadata(path, {"classes": ["a"], "clip": {"colour": "grey"}, "num_frames": 4})
    else:
        rewrite_metadata(path, [1, 2])
    with pytest.raises(ModelError, match="model.keras is corrupt or was not written by vidpipe"):
        load_model(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="There is no trained model .*model.keras. Train one"):
        load_model(tmp_path / "model.keras")


def test_load_weights_copies_every_weight(build: Build, inputs: Inputs, tmp_path: Path) -> None:
    source, model = (build("notebook", seed=seed) for seed in (1, 2))
    save_model(source.fused, METADATA, tmp_path / "model.keras")
    expected = source.fused(inputs).numpy()
    assert not np.allclose(model.fused(inputs).numpy(), expected, atol=1e-3)
    load_weights(model, tmp_path / "model.keras", CLASSES)
    assert (model.fused(inputs).numpy() == expected).all()


@pytest.mark.parametrize(
    ("classes", "settings", "message"),
    [
        pytest.param(
            ("a", "c"), {}, "was trained on the classes a, b, c; this dataset has a, c.", id="classes"
        ),
        pytest.param(
            CLASSES, {"backbone": "mobilenet_v2"},
            r"has another backbone: found block1_conv1/kernel \(3, 3, 3, 64\), "
            r"expected Conv1/kernel \(3, 3, 3, 32\)",
            id="backbone", marks=pytest.mark.slow,
        ),
        pytest.param(
            CLASSES, {"head": "notebook"},
            r"has another head: found standardize/mean \(512,\), expected lstm_cell/kernel",
            id="head",
        ),
        pytest.param(
            CLASSES, {"num_classes": 2},
            r"has another logits: found logits/kernel \(2, 576, 3\), expected logits/kernel \(2, 576, 2\)",
            id="shapes",
        ),
    ],
)  # fmt: skip
def test_load_weights_of_another_model_is_rejected_and_copies_nothing(
    build: Build, saved: Path, classes: tuple[str, ...], settings: dict, message: str
) -> None:
    model = build(**({"head": "motion", "seed": 2} | settings))
    before = model.fused.get_weights()
    with pytest.raises(ModelError, match="model.keras " + message):
        load_weights(model, saved, classes)
    for old, new in zip(before, model.fused.get_weights(), strict=True):
        assert (old == new).all()
