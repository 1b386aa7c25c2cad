"""Settings survive JSON, and values out of range or not among the choices are rejected by name."""

import dataclasses
from typing import Any

import pytest

from vidpipe import config
from vidpipe.config import (
    ClipConfig,
    ClipSpec,
    ConfigError,
    ConversionConfig,
    EvaluationConfig,
    ExportConfig,
    ManifestConfig,
    ModelConfig,
    OptimizerConfig,
    PredictionConfig,
    ServerConfig,
    TrainConfig,
    differences,
    fingerprint,
    flatten,
    from_dict,
    settings_of,
    to_dict,
)

MANIFEST = ManifestConfig(video_dir="v")
CONFIGS = [
    ClipConfig, ManifestConfig, ConversionConfig, ModelConfig, OptimizerConfig, TrainConfig, EvaluationConfig,
    PredictionConfig, ServerConfig, ExportConfig,
]  # fmt: skip


def _train(**settings: Any) -> TrainConfig:
    return TrainConfig(data_dir="d", run_dir="r", **settings)


def _convert(**settings: Any) -> ConversionConfig:
    return ConversionConfig(output_dir="o", manifest=MANIFEST, **settings)


def test_json_round_trip_of_nested_settings() -> None:
    made = _train(
        model=ModelConfig(fine_tune="block5"), optimizer=OptimizerConfig(ema=0.9), profile_steps=(2, 3)
    )
    assert from_dict(TrainConfig, to_dict(made)) == made


def test_json_round_trip_of_tuples() -> None:
    made = ConversionConfig(output_dir="o", manifest=ManifestConfig(video_dir="v", classes=("a", "b")))
    assert from_dict(ConversionConfig, to_dict(made)) == made


def test_a_setting_of_another_version_is_named() -> None:
    with pytest.raises(ConfigError, match="ClipConfig has no colour"):
        from_dict(ClipConfig, {"num_frames": 4, "colour": "grey"})


def test_settings_written_before_a_setting_existed_load_with_its_default() -> None:
    values = to_dict(ClipConfig(num_frames=4))
    del values["resize"]
    assert from_dict(ClipConfig, values) == ClipConfig(num_frames=4, resize="crop")


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_field_is_a_setting_with_help_or_a_nested_config(cls: Any) -> None:
    for field in dataclasses.fields(cls):
        if "setting" in field.metadata:
            assert field.metadata["setting"].help.endswith(".")
        else:
            assert dataclasses.is_dataclass(field.type)
    assert all(field.kw_only for field in dataclasses.fields(cls))


@pytest.mark.parametrize("cls", CONFIGS)
def test_every_default_is_valid(cls: Any) -> None:
    """And every setting of a config class is checked: `check` is called by each of them."""
    for name, known in settings_of(cls).items():
        (default,) = (field.default for field in dataclasses.fields(cls) if field.name == name)
        if default is dataclasses.MISSING or default is None:
            continue
        assert not known.choices or default in known.choices
        assert not known.range or known.allows(default)


@pytest.mark.parametrize(
    ("resize", "height", "width", "expected"),
    [
        ("crop", 240, 320, (224, 224)),
        ("short_side", 240, 320, (224, 299)),
        ("short_side", 320, 240, (299, 224)),
        ("short_side", 1080, 1920, (224, 398)),
        ("short_side", 33, 47, (224, 319)),
        ("short_side", 224, 224, (224, 224)),
    ],
)
def test_the_size_of_the_stored_frames(
    resize: str, height: int, width: int, expected: tuple[int, int]
) -> None:
    assert ClipConfig(image_size=224, resize=resize).frame_size(height, width) == expected


def test_the_frames_that_a_model_takes() -> None:
    clip = ClipConfig(num_frames=4, image_size=32)
    assert (clip.resolve_num_frames(None), clip.resolve_num_frames(3)) == (4, 3)
    assert clip.spec(3) == ClipSpec(num_frames=3, height=32, width=32)
    with pytest.raises(ConfigError, match="num_frames=5, but the dataset stores 4 frames per clip"):
        clip.resolve_num_frames(5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipConfig(num_frames=0), "num_frames must be at least 1; got 0"),
        (lambda: ClipConfig(image_size=0), "image_size must be at least 1; got 0"),
        (
            lambda: ClipConfig(sampling="random"),
            "sampling must be one of uniform, interval, head; got random",
        ),
        (lambda: ClipConfig(resize="pad"), "resize must be one of crop, short_side; got pad"),
        (lambda: ClipConfig(frame_stride=2), "frame_stride needs sampling=interval"),
        (lambda: ClipSpec(num_frames=4, height=0, width=32), "height must be at least 1; got 0"),
        (lambda: ManifestConfig(video_dir="v", fold=4), r"fold must be in \[1, 3\]; got 4"),
        (lambda: ManifestConfig(video_dir="v", val_fraction=1), r"val_fraction must be in \[0, 1\); got 1"),
        (lambda: ManifestConfig(video_dir="v", ucf101_lists="l", train_manifest="t"), "not both"),
        (lambda: ManifestConfig(video_dir="v", test_manifest="t"), "needs train_manifest"),
        (lambda: ManifestConfig(video_dir="v", classes=("a",), top_classes=1), "not both"),
        (lambda: ManifestConfig(video_dir="v", seed=-1), r"seed must be in \[0, 4294967296\); got -1"),
        (lambda: ManifestConfig(video_dir="v", classes=()), "classes is an empty list"),
        (lambda: _convert(jpeg_quality=0), r"jpeg_quality must be in \[1, 100\]; got 0"),
        (lambda: _convert(max_skipped=2), r"max_skipped must be in \[0, 1\]; got 2"),
        (lambda: _convert(shard_size_mb=0), "shard_size_mb must be above 0; got 0"),
        (lambda: _convert(shard_size_mb=float("nan")), "shard_size_mb must be above 0; got nan"),
        (lambda: _convert(encoding="bmp"), "encoding must be one of jpeg, png, raw; got bmp"),
        (lambda: _convert(runner="spark"), "runner must be one of local, dask, beam; got spark"),
        (lambda: ModelConfig(backbone="VGG16"), "backbone must be one of vgg16, resnet50, .*; got VGG16"),
        (lambda: ModelConfig(head="lstm"), "head must be one of motion, notebook; got lstm"),
        (lambda: ModelConfig(ensemble_size=0), "ensemble_size must be at least 1; got 0"),
        (lambda: ModelConfig(dropout=1), r"dropout must be in \[0, 1\); got 1"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate must be above 0; got 0"),
        (lambda: OptimizerConfig(learning_rate=float("inf")), "learning_rate must be above 0; got inf"),
        (lambda: OptimizerConfig(clip_norm=0), "clip_norm must be above 0; got 0"),
        (lambda: OptimizerConfig(weight_decay=-1), "weight_decay must be at least 0; got -1"),
        (lambda: OptimizerConfig(ema=1), r"ema must be in \[0, 1\); got 1"),
        (lambda: OptimizerConfig(name="adam"), "optimizer must be one of adamw, sgd; got adam"),
        (lambda: OptimizerConfig(schedule="linear"), "schedule must be one of constant, cosine"),
        (lambda: _train(epochs=0), "epochs must be at least 1; got 0"),
        (lambda: _train(seed=2**32), r"seed must be in \[0, 4294967296\); got 4294967296"),
        (lambda: _train(batch_size=10, accumulate=4), "accumulate must divide batch_size; got 4 and 10"),
        (lambda: _train(label_smoothing=1), r"label_smoothing must be in \[0, 1\); got 1"),
        (lambda: _train(class_weights="x"), "class_weights must be one of none, balanced"),
        (lambda: _train(strategy="two"), "strategy must be one of auto, one, mirrored"),
        (lambda: _train(cache_gb=-1), "cache_gb must be at least 0; got -1"),
        (lambda: _train(profile_steps=(3, 2)), r"FIRST:LAST in ascending order; got \(3, 2\)"),
        (lambda: _train(profile_steps=(0, 2)), r"profile_steps must be at least 1; got \(0, 2\)"),
        (
            lambda: _train(model=ModelConfig(fine_tune="all"), cache_features="on"),
            "cache_features=on needs frozen blocks",
        ),
        (
            lambda: _train(augment="flip", cache_features="on"),
            "frames that are the same in every epoch; got fine_tune=none, augment=flip",
        ),
        (lambda: _train(mixup=0.2, cache_features="on"), "the same in every epoch; .*mixup=0.2"),
        (lambda: _train(mixup=-1), "mixup must be at least 0; got -1"),
        (lambda: _train(data_service="h:1"), "data_service is not used .*cache_features=off"),
        (
            lambda: _train(data_service="h:1", checkpoint_every=5),
            "checkpoint_every cannot be combined with data_service",
        ),
        (lambda: _train(augment="turn"), "augment must be one of none, flip"),
        (lambda: _train(input_ram_gb=0), "input_ram_gb must be above 0; got 0"),
        (
            lambda: EvaluationConfig(run_dir="r", data_dir="d", split="dev"),
            "split must be one of train, val, test; got dev",
        ),
        (
            lambda: PredictionConfig(run_dir="r", gif="g", timeline="t"),
            "Give either gif or timeline",
        ),
        (lambda: ServerConfig(run_dir="r", port=70000), r"port must be in \[0, 65535\]; got 70000"),
        (
            lambda: ExportConfig(
                run_dir="r", data_dir="d", format="saved_model", output="o", quantization="dynamic_range"
            ),
            "quantization needs format=tflite; got format=saved_model",
        ),
    ],
)  # fmt: skip
def test_invalid_settings_are_rejected(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        make()
    assert raised.value.exit_code == 2


def test_choices_of_samplers_are_the_samplers() -> None:
    from vidpipe.data import sampling

    assert tuple(sampling.SAMPLERS) == config.SAMPLERS


def test_differences_name_nested_settings() -> None:
    old = {"a": 1, "model": {"head": "x", "b": 2}, "free": 1}
    new = {"a": 1, "model": {"head": "y", "b": 2}, "c": 3, "free": 2}
    assert differences(old, new, ignored=("free",)) == ["c: None -> 3", "model.head: x -> y"]


def test_flatten_names_settings_by_their_path() -> None:
    assert flatten({"a": 1, "b": {"c": {"d": 2}}}) == {"a": 1, "b.c.d": 2}


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 2, "b": 1})
