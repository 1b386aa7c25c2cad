"""The batches of a run: who gets which clips, and what a message says of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from vidpipe.config import TrainConfig
from vidpipe.data.dataset import Dataset
from vidpipe.model.feature_cache import FeatureTable
from vidpipe.training import batches
from vidpipe.training.batches import Batches, feature_batches, frame_batches

MakeConfig = Callable[..., TrainConfig]
NUM_TRAIN, NUM_VAL = 8, 2


@pytest.fixture(scope="module")
def tables() -> dict[str, FeatureTable]:
    """Features that tell which clip and which frame they are of."""

    def table(num_clips: int) -> FeatureTable:
        features = 10.0 * np.arange(num_clips)[:, np.newaxis] + np.arange(4)
        return FeatureTable(
            features=features[..., np.newaxis].astype(np.float32),
            mask=np.ones((num_clips, 4), bool),
            label=np.arange(num_clips, dtype=np.int32),
        )

    return {"train": table(NUM_TRAIN), "val": table(NUM_VAL)}


@pytest.fixture(scope="module", params=["frames", "features"])
def made(
    request: pytest.FixtureRequest,
    dataset: Dataset,
    train_config: MakeConfig,
    tables: dict[str, FeatureTable],
) -> Batches:
    """Batches of 4 clips."""
    if request.param == "frames":
        return frame_batches(train_config(Path("run")), dataset, batch_size=4, num_frames=4, clips_per_call=8)
    return _of_features(dataset, tables)


def _of_features(dataset: Dataset, tables: dict[str, FeatureTable], batch_size: int = 4) -> Batches:
    return feature_batches(
        tables, dataset, video_ids=dataset.video_ids("train"), batch_size=batch_size, seed=1, num_frames=4
    )


def _rows(part: tf.data.Dataset) -> list[tuple[list[np.ndarray], list[int], list[float]]]:
    """The inputs, labels and weights of each batch."""
    return [
        ([values.numpy() for values in inputs.values()], label.numpy().tolist(), weight.numpy().tolist())
        for inputs, label, weight in part
    ]


def test_the_numbers_of_clips(made: Batches) -> None:
    assert (made.batch_size, made.num_clips) == (4, NUM_TRAIN)
    assert [len(label) for _, label, _ in _rows(made.train(0, 0, 1, 0))] == [4, 4]


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_divide_each_step(made: Batches, split: str) -> None:
    def part(num_workers: int, worker: int) -> tf.data.Dataset:
        if split == "train":
            return made.train(1, 1, num_workers, worker)
        assert made.val is not None
        return made.val(num_workers, worker)

    whole, first, second = (_rows(part(*of)) for of in ((1, 0), (2, 0), (2, 1)))
    assert len(whole) == len(first) == len(second) == 1
    for (inputs, label, weight), *parts in zip(whole, first, second, strict=True):
        for values, *of_workers in zip(inputs, *(inputs for inputs, _, _ in parts), strict=True):
            assert (values == np.concatenate(of_workers)).all()
        assert label == [value for _, labels, _ in parts for value in labels]
        assert weight == [value for _, _, weights in parts for value in weights]


def test_the_first_inputs_are_those_of_the_train_split_without_fillers(
    dataset: Dataset, tables: dict[str, FeatureTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "_HEAD_FORWARD_CLIPS", 3)  # 8 clips: the last of three batches has a filler
    made = _of_features(dataset, tables)
    found = list(made.first_inputs())
    assert [len(inputs["mask"]) for inputs in found] == [3, 3, 2]
    monkeypatch.setattr(batches, "_STANDARDIZATION_CLIPS", 4)
    assert [len(inputs["mask"]) for inputs in made.first_inputs()] == [3, 3]


def test_the_clips_of_a_step_are_named(dataset: Dataset, tables: dict[str, FeatureTable]) -> None:
    """The label of each clip in `tables` is its index."""
    video_ids = dataset.video_ids("train")
    made = _of_features(dataset, tables, batch_size=3)
    for step, (_, label, weight) in enumerate(_rows(made.train(2, 0, 1, 0))):
        real = [index for index, of_clip in zip(label, weight, strict=True) if of_clip > 0]
        assert made.clips_of_step(2, step) == ", ".join(video_ids[index] for index in real)


def test_frames_and_features_name_the_same_clips(
    dataset: Dataset, train_config: MakeConfig, tables: dict[str, FeatureTable]
) -> None:
    frames = frame_batches(
        train_config(Path("run"), seed=5), dataset, batch_size=3, num_frames=4, clips_per_call=8
    )
    features = feature_batches(
        tables, dataset, video_ids=dataset.video_ids("train"), batch_size=3, seed=5, num_frames=4
    )
    steps = [(epoch, step) for epoch in range(2) for step in range(3)]
    named = [frames.clips_of_step(*of) for of in steps]
    assert named == [features.clips_of_step(*of) for of in steps]
    assert len(set(named)) == 6


def test_of_many_clips_some_are_named(
    dataset: Dataset, tables: dict[str, FeatureTable], monkeypatch: Any
) -> None:
    monkeypatch.setattr(batches, "_NAMED_CLIPS", 2)
    made = _of_features(dataset, tables, batch_size=5)
    assert made.clips_of_step(0, 0).count(", ") == 1
    assert made.clips_of_step(0, 0).endswith(" and 3 more")
    assert made.clips_of_step(0, 1).endswith(" and 1 more")


def test_a_data_service_chooses_the_clips(dataset: Dataset, train_config: MakeConfig) -> None:
    config = train_config(Path("run"), data_service="host:1", augment="flip")
    made = frame_batches(config, dataset, batch_size=4, num_frames=4, clips_per_call=8)
    assert made.clips_of_step(0, 0) == "clips that the tf.data service chose"


def test_without_a_validation_split_there_are_no_batches_of_it(
    dataset: Dataset, train_config: MakeConfig
) -> None:
    info = replace(dataset.info, splits={**dataset.info.splits, "val": ()})
    without = replace(dataset, info=info)
    assert (
        frame_batches(train_config(Path("run")), without, batch_size=4, num_frames=4, clips_per_call=8).val
        is None
    )
