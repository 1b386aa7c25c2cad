"""model.keras contains the model and its metadata; --init_from copies weights that fit, or none at all."""

import json
import logging
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from vidpipe.config import ClipConfig
from vidpipe.model import model_file
from vidpipe.model.fused import FusedModel
from vidpipe.model.heads import HEADS
from vidpipe.model.model_file import (
    METADATA_NAME,
    ModelError,
    ModelMetadata,
    for_this_machine,
    load_model,
    load_weights,
    precision_of,
    read_metadata,
    save_model,
)
from vidpipe.training.precision import dtype_policy

Build = Callable[..., FusedModel]
Inputs = dict[str, np.ndarray]
CLASSES = ("a", "b", "c")
METADATA = ModelMetadata(
    CLASSES, ClipConfig(num_frames=6, image_size=32), 4, clip_sec=(1.5, 2, 3), background="b"
)


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
    assert metadata == read_metadata(tmp_path / "model.keras") == METADATA
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
    values = json.loads(METADATA.to_json())
    rewrite_metadata(path, values | {"clip": values["clip"] | {"num_frames": 4}, "num_frames": None})
    _, metadata = load_model(path)
    assert metadata.num_frames == 4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"classes": "abc"}, "classes is not a list of names"),
        ({"classes": ["a", "b", 3]}, "classes is not a list of names"),
        ({"classes": ["a", "b"]}, r"its classes have the shape \(3,\), its metadata say \(2,\)"),
        ({"num_frames": "4"}, "num_frames is '4'"),
        ({"num_frames": 3}, r"its frames have the shape \(4, 32, 32, 3\), its metadata say \(3, 32, 32, 3\)"),
        ({"num_frames": 7}, "num_frames"),
        ({"clip_sec": [1, 2]}, "not enough values"),
        ({"clip_sec": [1, 2, "x"]}, "could not convert string to float"),
        ({"background": "z"}, "background is 'z'"),
        ({"clip": None}, "ClipConfig is None instead of an object"),
        ({"clip": {"num_frames": "6"}}, "num_frames has a value of another type: '6'"),
        ({"clip": {"num_frames": True}}, "num_frames has a value of another type: True"),
        ({"clip": {"num_frames": 6.5}}, "num_frames has a value of another type: 6.5"),
        ({"clip": {"num_frames": -6}}, "num_frames must be at least 1"),
        ({"clip": {"image_size": 64}}, r"the shape \(4, 32, 32, 3\), its metadata say \(4, 64, 64, 3\)"),
    ],
)
def test_edited_metadata_get_one_line(
    saved: Path, tmp_path: Path, edit: dict[str, object], message: str
) -> None:
    path = tmp_path / "model.keras"
    path.write_bytes(saved.read_bytes())
    values = json.loads(METADATA.to_json())
    if isinstance(edit.get("clip"), dict):
        edit = {"clip": values["clip"] | edit["clip"]}
    rewrite_metadata(path, values | edit)
    with pytest.raises(ModelError, match=rf"^{path} is corrupt or was not written by vidpipe \(.*{message}"):
        load_model(path)


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_gets_one_line_or_changes_nothing(saved: Path, position: float, bit: int) -> None:
    """Without loading the weights, which takes longer; their checksums are in the archive, too."""
    data = bytearray(saved.read_bytes())
    data[int(position * len(data))] ^= 1 << bit
    with zipfile.ZipFile(saved) as archive:
        expected = {name: archive.read(name) for name in archive.namelist()}
    seen = {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        path = Path(folder) / "model.keras"
        path.write_bytes(data)

        def read(path: Path, **_: object) -> None:
            with zipfile.ZipFile(path) as archive:
                seen.update({name: archive.read(name) for name in archive.namelist()})

        patched.setattr(model_file.keras.saving, "load_model", read)
        patched.setattr(model_file, "_check_shapes", lambda *_: None)
        try:
            _, metadata = load_model(path)
        except ModelError as error:
            assert "\n" not in str(error)
            return
    assert metadata == METADATA
    assert seen == expected


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
            r"has another logits: found logits/kernel \(2, 64, 3\), expected logits/kernel \(2, 64, 2\)",
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


def test_load_weights_of_a_version_without_linear_part_is_rejected(
    build: Build, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, metadata = load_model(saved)
    earlier = keras.Model(source.input, source.get_layer("pooled").output)
    monkeypatch.setattr(model_file, "load_model", lambda _: (earlier, metadata))
    with pytest.raises(
        ModelError, match="trained with an earlier version of vidpipe, .* Train that run again"
    ):
        load_weights(build("motion"), saved, metadata.classes)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_a_model_of_half_precision_runs_in_float32_where_there_is_no_gpu(
    build: Build,
    inputs: Inputs,
    policy: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    single = build().fused
    assert for_this_machine(single) is single
    with dtype_policy(policy):
        half = build().fused
    with caplog.at_level(logging.INFO):
        ours = for_this_machine(half)
    assert caplog.messages == [f"The model was trained in {policy}; without a GPU it runs in float32."]
    assert (precision_of(half), precision_of(ours)) == (policy, "float32")
    assert (ours(inputs).numpy() == single(inputs).numpy()).all()
    assert not (half(inputs).numpy() == single(inputs).numpy()).all()
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["a GPU"])
    assert for_this_machine(half) is half
