"""Settings survive JSON, and impossible ones are refused by name."""

import pytest

from vidpipe.config import (
    ClipConfig,
    ConfigError,
    ConversionConfig,
    ManifestConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    differences,
    fingerprint,
    from_dict,
    to_dict,
)
from vidpipe.spec import ClipSpec, VidpipeError


def test_json_round_trip_of_nested_settings() -> None:
    config = TrainConfig("data", "run", ModelConfig(fine_tune="block5"), OptimizerConfig(ema=0.9))
    assert from_dict(TrainConfig, to_dict(config)) == config


def test_json_round_trip_of_tuples() -> None:
    config = ConversionConfig("out", ManifestConfig("videos", classes=("a", "b")))
    assert from_dict(ConversionConfig, to_dict(config)) == config


def test_a_setting_of_another_version_is_named() -> None:
    with pytest.raises(ConfigError, match="ClipConfig has no colour"):
        from_dict(ClipConfig, {"num_frames": 4, "colour": "grey"})


def test_settings_written_before_a_setting_came_load_with_its_default() -> None:
    values = to_dict(ClipConfig(num_frames=4))
    del values["resize"]
    assert from_dict(ClipConfig, values) == ClipConfig(num_frames=4, resize="crop")


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
        (lambda: ClipConfig(frame_stride=2), "frame_stride goes with sampling=interval"),
        (lambda: ManifestConfig("v", fold=4), "folds 1, 2 and 3; got fold=4"),
        (lambda: ManifestConfig("v", val_fraction=1), r"val_fraction must be in \[0, 1\); got 1"),
        (lambda: ManifestConfig("v", ucf101_lists="l", train_manifest="t"), "not both"),
        (lambda: ManifestConfig("v", test_manifest="t"), "needs a train_manifest"),
        (lambda: ManifestConfig("v", classes=("a",), top_classes=1), "not both"),
        (lambda: ManifestConfig("v", seed=-1), r"seed must be in \[0, 2\*\*32\); got -1"),
        (lambda: ManifestConfig("v", classes=()), "classes names no class"),
        (lambda: ConversionConfig("o", ManifestConfig("v"), jpeg_quality=0), "jpeg_quality must be from 1"),
        (lambda: ConversionConfig("o", ManifestConfig("v"), max_skipped=2), "max_skipped is a fraction"),
        (
            lambda: ConversionConfig("o", ManifestConfig("v"), shard_size_mb=0),
            "shard_size_mb must be above 0",
        ),
        (lambda: TrainConfig("d", "r", epochs=0), "epochs must be at least 1; got 0"),
        (lambda: TrainConfig("d", "r", seed=2**32), r"seed must be in \[0, 2\*\*32\); got 4294967296"),
        (lambda: OptimizerConfig(learning_rate=0), "learning_rate must be above 0; got 0"),
        (lambda: OptimizerConfig(clip_norm=0), "clip_norm must be above 0; got 0"),
        (lambda: OptimizerConfig(weight_decay=-1), "weight_decay must be 0 or more; got -1"),
        (lambda: OptimizerConfig(ema=1), r"ema must be in \[0, 1\); got 1"),
        (lambda: OptimizerConfig(name="adam"), "optimizer must be one of adamw, sgd; got adam"),
        (lambda: OptimizerConfig(schedule="linear"), "schedule must be one of constant, cosine"),
        (lambda: TrainConfig("d", "r", batch_size=10, accumulate=4), "divide batch_size; got 4 and 10"),
        (lambda: TrainConfig("d", "r", label_smoothing=1), r"label_smoothing must be in \[0, 1\); got 1"),
        (lambda: TrainConfig("d", "r", class_weights="x"), "class_weights must be one of none, balanced"),
        (lambda: TrainConfig("d", "r", strategy="two"), "strategy must be one of auto, one, mirrored"),
        (lambda: TrainConfig("d", "r", cache_gb=-1), "cache_gb must be 0 or more; got -1"),
        (lambda: TrainConfig("d", "r", profile_steps=(3, 2)), r"FIRST:LAST, from 1; got \(3, 2\)"),
        (
            lambda: TrainConfig("d", "r", ModelConfig(fine_tune="all"), cache_features="on"),
            "cache_features=on needs frozen blocks",
        ),
        (
            lambda: TrainConfig("d", "r", augment="flip", cache_features="on"),
            "frames that are the same in every epoch; got fine_tune=none, augment=flip",
        ),
        (
            lambda: TrainConfig("d", "r", mixup=0.2, cache_features="on"),
            "frames that are the same in every epoch; .*mixup=0.2",
        ),
        (lambda: TrainConfig("d", "r", mixup=-1), "mixup must be 0 or more"),
        (
            lambda: TrainConfig("d", "r", data_service="h:1"),
            "data_service has nothing to do .*cache_features=off",
        ),
        (lambda: TrainConfig("d", "r", augment="turn"), "augment must be one of none, flip"),
        (lambda: TrainConfig("d", "r", input_ram_gb=0), "input_ram_gb must be above 0"),
        (
            lambda: ClipConfig(num_frames=4).model_spec(5),
            "num_frames=5, but the records hold 4 frames a clip",
        ),
    ],
)
def test_impossible_settings_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_clip_of_no_frames_is_refused() -> None:
    with pytest.raises(VidpipeError, match="height must be at least 1; got 0"):
        ClipSpec(4, 0, 32)


def test_differences_name_nested_settings() -> None:
    old, new = {"a": 1, "model": {"head": "x", "b": 2}}, {"a": 1, "model": {"head": "y", "b": 2}, "c": 3}
    assert differences(old, new) == ["c: None -> 3", "model.head: x -> y"]


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1, "b": 2}) != fingerprint({"a": 2, "b": 1})
