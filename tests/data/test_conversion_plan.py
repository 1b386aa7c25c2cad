"""The distribution of videos over shards, and the settings that decide the bytes of a dataset."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
from vidpipe.data.conversion_plan import dataset_settings, plan_conversion, plan_shards
from vidpipe.data.video_row import VideoRow

CONFIG = ConversionConfig(output_dir="out", manifest=ManifestConfig(video_dir="videos"))
ROWS = [VideoRow(f"{name}/{index}", "", name, "train", "") for name in "ab" for index in range(200)]


def test_a_list_sorted_by_class_is_mixed_in_every_shard() -> None:
    for plan in plan_shards(ROWS, split="train", num_shards=4):
        assert 30 <= sum(row.label_name == "a" for row in plan.rows) <= 70


@given(st.sets(st.text("ab/1", min_size=1), min_size=1, max_size=30), st.integers(1, 7))
def test_every_video_is_in_one_shard_whatever_the_order_of_the_list(names: set[str], num_shards: int) -> None:
    rows = [VideoRow(name, name, "x", "train", name) for name in sorted(names)]
    plans = plan_shards(rows, split="train", num_shards=num_shards)
    assert plans == plan_shards(rows[::-1], split="train", num_shards=num_shards)
    planned = [row for plan in plans for row in plan.rows]
    assert sorted(row.video_id for row in planned) == sorted(names)
    sizes = [len(plan.rows) for plan in plans]
    assert len(plans) == num_shards
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("changes", "num_shards"),
    [
        # 400 clips of 20 frames of 224 x 224 pixels and 0.4 bytes per pixel are 153 MiB.
        pytest.param({}, 1, id="default"),
        pytest.param({"shard_size_mb": 10}, 15, id="smaller shards"),
        pytest.param({"shard_size_mb": 10, "encoding": "raw"}, 115, id="raw"),
        pytest.param({"shard_size_mb": 10, "clip": ClipConfig(resize="short_side")}, 20, id="uncropped"),
        pytest.param({"shard_size_mb": 1e-6}, 400, id="at most one shard per clip"),
    ],
)
def test_the_number_of_shards_follows_from_the_estimated_size(changes: dict, num_shards: int) -> None:
    plans = plan_conversion(ROWS, replace(CONFIG, **changes))
    assert {split: len(plan) for split, plan in plans.items()} == {"train": num_shards, "val": 0, "test": 0}
    assert plans["train"][0].name == f"train-00000-of-{num_shards:05d}.tfrecord"


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        pytest.param({"output_dir": "elsewhere", "num_workers": 7, "timeout_sec": 5.0}, True, id="resources"),
        pytest.param({"max_skipped": 0.5, "worker_memory_mb": 512}, True, id="limits"),
        pytest.param({"jpeg_quality": 50}, False, id="jpeg quality"),
        pytest.param({"clip": ClipConfig(num_frames=4)}, False, id="clip"),
        pytest.param({"shard_size_mb": 7}, False, id="shard size"),
    ],
)
def test_settings_are_those_that_change_the_bytes(changes: dict, is_equal: bool) -> None:
    settings = dataset_settings(CONFIG, ROWS, ["a", "b"])
    assert (dataset_settings(replace(CONFIG, **changes), ROWS, ["a", "b"]) == settings) == is_equal


def test_settings_depend_on_the_listed_videos_but_not_on_their_order() -> None:
    settings = dataset_settings(CONFIG, ROWS, ["a", "b"])
    assert dataset_settings(CONFIG, ROWS[::-1], ["a", "b"]) == settings
    relabelled = [replace(ROWS[0], label_name="b"), *ROWS[1:]]
    assert dataset_settings(CONFIG, relabelled, ["a", "b"]) != settings


def test_jpeg_quality_does_not_matter_to_lossless_frames() -> None:
    first, second = (replace(CONFIG, encoding="png", jpeg_quality=quality) for quality in (50, 95))
    assert dataset_settings(first, ROWS, ["a", "b"]) == dataset_settings(second, ROWS, ["a", "b"])
