"""Batches: every clip once, in an order that depends on (seed, epoch), padded, with a mask."""

import dataclasses
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from synthetic import frame_indices_of, record_start
from vidpipe.config import ClipConfig, ClipSpec
from vidpipe.data import records, shards
from vidpipe.data.dataset import Dataset
from vidpipe.data.input_pipeline import (
    InputError,
    centre_view,
    eval_dataset,
    in_epoch_order,
    indices_in_epoch_order,
    pad_clip,
    train_dataset,
)
from vidpipe.data.video import read_clip


def _train(dataset: Dataset, **settings: Any) -> tf.data.Dataset:
    """Makes an epoch of whole clips in batches of three."""
    return train_dataset(dataset, **({"batch_size": 3, "seed": 1, "epoch": 0, "num_frames": 4} | settings))


def _eval(dataset: Dataset, split: str = "train", **settings: Any) -> tf.data.Dataset:
    return eval_dataset(dataset, split=split, **({"batch_size": 3, "num_frames": 4} | settings))


def _open(folder: Path) -> Dataset:
    return Dataset(str(folder), str(folder), shards.read_info(folder))


def _with_shards(dataset: Dataset, num_shards: int, *, clips: int, size_bytes: int = 0) -> Dataset:
    """Replaces the description of the train shards."""
    shard_infos = tuple(shards.ShardInfo(f"{i}", clips, size_bytes, "") for i in range(num_shards))
    info = dataclasses.replace(dataset.info, splits=dataset.info.splits | {"train": shard_infos})
    return dataclasses.replace(dataset, info=info)


def _order(
    dataset: Dataset, clips_per_shard: int, *, seed: int = 1, epoch: int = 0, count: int = -1
) -> list[int]:
    """Returns the first `count` clip indices of an epoch, or all."""
    order = in_epoch_order(
        lambda shard: tf.data.Dataset.range(shard * clips_per_shard, (shard + 1) * clips_per_shard),
        dataset,
        split="train",
        seed=seed,
        epoch=epoch,
        skip_clips=0,
    )
    return list(order.take(count).as_numpy_iterator())


def _clips(batches: Iterable) -> list[tuple]:
    """Lists the real clips as hashable (frames, mask, label)."""
    return [
        (frames.tobytes(), mask.tobytes(), int(label))
        for inputs, labels, weights in batches
        for frames, mask, label, weight in zip(
            inputs["frames"].numpy(), inputs["mask"].numpy(), labels.numpy(), weights.numpy(), strict=True
        )
        if weight > 0
    ]


@pytest.fixture(scope="module")
def epoch_clips(dataset: Dataset) -> list[tuple]:
    """The clips of the epoch that `_train` makes."""
    return _clips(_train(dataset))


@pytest.fixture(scope="module")
def clips_in_order(dataset: Dataset) -> list[tuple]:
    """The train clips in the order of their records."""
    return _clips(_eval(dataset))


def test_clips_hold_the_sampled_frames_then_zeros(dataset: Dataset) -> None:
    rows = dataset.clip_rows("test")
    num_seen = 0
    for inputs, label, weight in _eval(dataset, "test", batch_size=6):
        assert inputs["frames"].shape == (6, 4, 32, 32, 3)
        assert (inputs["frames"].dtype, inputs["mask"].dtype) == (tf.uint8, tf.bool)
        assert (label.dtype, weight.dtype) == (tf.int32, tf.float32)
        for row, frames, mask, index in zip(
            rows, inputs["frames"].numpy(), inputs["mask"].numpy(), label.numpy(), strict=True
        ):
            length = int(row["frames_shown"])
            count = min(length, 4)
            expected = [(2 * i + 1) * length // (2 * count) for i in range(count)]
            assert frame_indices_of(frames[mask]) == expected
            assert mask.tolist() == [True] * count + [False] * (4 - count)
            assert (frames[~mask] == 0).all()
            assert dataset.classes[index] == row["label"]
            num_seen += 1
    assert num_seen == 6


def test_uncropped_frames_are_cropped_to_their_centre_square(
    tmp_path: Path, wide_and_tall: Path, convert_wide_and_tall: Callable[..., ClipConfig]
) -> None:
    """Landscape and portrait videos in one batch; training and evaluation read the same."""
    clip = convert_wide_and_tall(tmp_path, "raw", "short_side")
    dataset = _open(tmp_path)
    expected = {}
    for row in dataset.clip_rows("train"):
        stored = read_clip(str(wide_and_tall / row["video_id"]), clip).frames
        assert stored.shape[1:3] == ((32, 43) if row["label"] == "wide" else (43, 32))
        square = stored[:, :, 5:37] if row["label"] == "wide" else stored[:, 5:37]
        expected[square.tobytes()] = dataset.classes.index(row["label"])
    for batches in (_eval(dataset, batch_size=4), _train(dataset, batch_size=4)):
        ((inputs, label, _),) = batches
        assert inputs["frames"].shape == (4, 4, 32, 32, 3)
        frames, mask = inputs["frames"].numpy(), inputs["mask"].numpy()
        found = {frames[row][mask[row]].tobytes(): int(label[row]) for row in range(4)}
        assert found == expected


def test_every_epoch_has_every_clip_once_in_another_order(
    dataset: Dataset, epoch_clips: list[tuple], clips_in_order: list[tuple]
) -> None:
    epochs = [epoch_clips, *(_clips(_train(dataset, epoch=epoch)) for epoch in (1, 2))]
    assert len(set(clips_in_order)) == 8
    assert all(sorted(epoch) == sorted(clips_in_order) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, clips_in_order]}) == 4


def test_the_order_is_a_function_of_seed_and_epoch(dataset: Dataset, epoch_clips: list[tuple]) -> None:
    assert _clips(_train(dataset, seed=1, epoch=0)) == epoch_clips
    assert _clips(_train(dataset, seed=2, epoch=0)) != epoch_clips


@pytest.mark.parametrize("skip_batches", [1, 2, 3])
def test_skipping_batches_leaves_the_rest_of_the_epoch(
    dataset: Dataset, skip_batches: int, epoch_clips: list[tuple]
) -> None:
    assert _clips(_train(dataset, skip_batches=skip_batches)) == epoch_clips[3 * skip_batches :]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of frames of each clip that was decoded."""
    counts: list[int] = []
    original = records.decode_frames

    def count(encoded: np.ndarray) -> np.ndarray:
        counts.append(len(encoded))
        return encoded

    def decode_and_count(encoded: tf.Tensor, *arguments: Any) -> tf.Tensor:
        counted = tf.ensure_shape(tf.numpy_function(count, [encoded], tf.string), encoded.shape)
        return original(counted, *arguments)

    monkeypatch.setattr(records, "decode_frames", decode_and_count)
    return counts


def test_training_does_not_decode_skipped_clips(dataset: Dataset, decoded: list[int]) -> None:
    _clips(_train(dataset, skip_batches=2))
    assert len(decoded) == 2


@pytest.mark.parametrize("skip_clips", [0, 1, 4, 7])
def test_evaluation_does_not_decode_skipped_clips(
    dataset: Dataset, skip_clips: int, clips_in_order: list[tuple], decoded: list[int]
) -> None:
    batches = _eval(dataset, skip_clips=skip_clips)
    assert len(batches) == -(-(8 - skip_clips) // 3)
    assert _clips(batches) == clips_in_order[skip_clips:]
    assert len(decoded) == 8 - skip_clips


def test_all_crops_of_a_skipped_clip_are_skipped(dataset: Dataset) -> None:
    crops: dict[str, Any] = {"num_frames": 2, "temporal_crops": 2}
    split = _clips(_eval(dataset, **crops))
    assert _clips(_eval(dataset, **crops, skip_clips=5)) == split[10:]


@pytest.mark.parametrize("global_seed", [None, 7])
def test_the_order_is_the_same_on_every_machine_and_version(
    dataset: Dataset, global_seed: int | None
) -> None:
    """The expected order was recorded once; TensorFlow, machine and global seed may not change it."""
    tf.random.set_seed(global_seed)
    order = _order(_with_shards(dataset, 4, clips=3), 3, seed=5, epoch=2)
    assert order == [6, 5, 1, 7, 0, 11, 9, 4, 8, 2, 10, 3]


_AUGMENTED = {"num_frames": 3, "augmentation": "flip_crop_colour"}


@pytest.mark.parametrize("threads", [1, 16])
def test_the_number_of_threads_changes_nothing(dataset: Dataset, threads: int) -> None:
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    batches = _train(dataset, **_AUGMENTED)
    assert _clips(batches.with_options(options)) == _clips(batches)


def test_augmentation_changes_with_the_epoch_but_not_by_skipping(dataset: Dataset) -> None:
    first, second = (_clips(_train(dataset, epoch=epoch, **_AUGMENTED)) for epoch in (0, 1))
    assert len(set(first) | set(second)) == 16
    assert _clips(_train(dataset, skip_batches=1, **_AUGMENTED)) == first[3:]


def _indices_read(batches: Iterable) -> set[tuple[int, ...]]:
    """Collects the indices of each clip's frames in its video, computed from their brightness."""
    return {
        tuple(frame_indices_of(frames[mask]))
        for inputs, _, _ in batches
        for frames, mask in zip(inputs["frames"].numpy(), inputs["mask"].numpy(), strict=True)
    }


def test_one_frame_of_each_segment_is_sampled_in_order(dataset: Dataset) -> None:
    """Two of four stored frames: one of the first two, one of the last two; every pair within 16 epochs."""
    stored = [indices for indices in _indices_read(_eval(dataset, batch_size=8)) if len(indices) == 4]
    assert len(stored) >= 3
    expected = {pair for a, b, c, d in stored for pair in ((a, c), (a, d), (b, c), (b, d))}
    sampled: set[tuple[int, ...]] = set()
    for epoch in range(16):
        sampled |= _indices_read(_train(dataset, batch_size=8, epoch=epoch, num_frames=2))
        if expected <= sampled:
            break
    assert expected <= sampled


def test_mixup_mixes_the_clips_of_a_batch(dataset: Dataset) -> None:
    """The last batch has a padding example. The labels show with which weights clips are mixed."""
    plain = list(_train(dataset))
    mixed = list(_train(dataset, mixup=0.4))
    assert len(mixed) == 3
    mixup_weights = []
    for (inputs, label, weight), (mixed_inputs, mixed_label, mixed_weight) in zip(plain, mixed, strict=True):
        assert (weight.numpy() == mixed_weight.numpy()).all()
        frames = inputs["frames"].numpy().astype(float)
        for row in range(3):
            if weight[row] == 0 or weight[row - 1] == 0:
                assert (mixed_inputs["frames"][row].numpy() == frames[row]).all()
                continue
            assert mixed_label[row].numpy().sum() == pytest.approx(1)
            own, other = int(label[row]), int(label[row - 1])
            if own == other:
                continue
            mixup_weight = float(mixed_label[row, own])
            mixup_weights.append(mixup_weight)
            expected = mixup_weight * frames[row] + (1 - mixup_weight) * frames[row - 1]
            np.testing.assert_allclose(mixed_inputs["frames"][row], expected, atol=0.51)
            either = inputs["mask"][row].numpy() | inputs["mask"][row - 1].numpy()
            assert (mixed_inputs["mask"][row].numpy() == either).all()
    assert len(mixup_weights) >= 2 and len(set(mixup_weights)) == len(mixup_weights)


@pytest.mark.parametrize("num_replicas", [2, 3, 5])
@pytest.mark.parametrize("skip_batches", [0, 1])
def test_replicas_divide_each_step(dataset: Dataset, num_replicas: int, skip_batches: int) -> None:
    """Together the replicas read the batches of one replica with a batch size that is as large as theirs."""
    batch_size = 2
    step_clips = batch_size * num_replicas
    expected = _clips(_train(dataset, batch_size=step_clips))[skip_batches * step_clips :]
    replicas = [
        list(
            _train(
                dataset,
                batch_size=batch_size,
                skip_batches=skip_batches,
                num_replicas=num_replicas,
                replica=replica,
            )
        )
        for replica in range(num_replicas)
    ]
    num_steps = -(-8 // step_clips) - skip_batches
    assert [len(batches) for batches in replicas] == [num_steps] * num_replicas
    assert [clip for step in zip(*replicas, strict=True) for clip in _clips(step)] == expected


@pytest.fixture
def data_service() -> Iterator[str]:
    """The address of a tf.data service with two workers in this process."""
    servers = tf.data.experimental.service
    dispatcher = servers.DispatchServer(servers.DispatcherConfig(port=0))
    address = dispatcher.target.removeprefix("grpc://")
    workers = [servers.WorkerServer(servers.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    yield address
    del workers, dispatcher


def test_a_data_service_reads_every_clip_once_with_the_same_augmentation(
    dataset: Dataset, data_service: str
) -> None:
    """Only the order of the clips differs."""
    for epoch in range(2):
        here, by_service = (
            _train(dataset, epoch=epoch, augmentation="flip_crop_colour", data_service=address)
            for address in (None, data_service)
        )
        assert by_service.cardinality() == 3
        assert sorted(_clips(by_service)) == sorted(_clips(here))


def test_a_data_service_that_does_not_answer_is_named(dataset: Dataset) -> None:
    message = "No tf.data service answers at localhost:1 .*refused.*Start its dispatcher"
    with pytest.raises(InputError, match=message):
        _train(dataset, data_service="localhost:1")
    with pytest.raises(InputError, match=r"No tf.data service answers at nonsense \(expected host:port\)"):
        _train(dataset, data_service="nonsense")


def test_a_data_service_cannot_skip_or_divide_clips(dataset: Dataset) -> None:
    for unsupported in ({"skip_batches": 1}, {"num_replicas": 2}):
        with pytest.raises(ValueError, match="not supported with data_service"):
            _train(dataset, data_service="localhost:1", **unsupported)


def test_a_memory_budget_changes_no_clip(dataset: Dataset, epoch_clips: list[tuple]) -> None:
    budgeted = _train(dataset, ram_gb=0.25)
    assert budgeted.options().autotune.ram_budget == 2**28
    assert _clips(budgeted) == epoch_clips


def test_the_shuffle_buffer_is_bounded_in_bytes(dataset: Dataset) -> None:
    """A raw clip of 20 x 224 x 224 has 3 MB; 2,048 of them would take 6 GB."""
    clip_bytes = 3_010_560
    large = _with_shards(dataset, 1, clips=10_000, size_bytes=10_000 * clip_bytes)
    assert _order(large, 10_000, count=1)[0] < 2**30 // clip_bytes


def test_crops_of_a_clip_are_consecutive(
    tmp_path: Path, wide_and_tall: Path, convert_wide_and_tall: Callable[..., ClipConfig]
) -> None:
    """Two temporal crops with different stored frames, and three positions along the long side."""
    clip = convert_wide_and_tall(tmp_path, "raw", "short_side")
    dataset = _open(tmp_path)
    rows = dataset.clip_rows("train")
    ((inputs, labels, weights),) = _eval(
        dataset, batch_size=6 * len(rows), num_frames=2, temporal_crops=2, spatial_crops=3
    )
    assert weights.numpy().tolist() == [1] * 6 * len(rows)
    for number, row in enumerate(rows):
        stored = read_clip(str(wide_and_tall / row["video_id"]), clip).frames
        crops = inputs["frames"].numpy()[6 * number : 6 * number + 6]
        expected = [
            stored[times, :, start : start + 32]
            if row["label"] == "wide"
            else stored[times, start : start + 32]
            for times in {3: ([0, 1], [1, 2]), 4: ([0, 2], [1, 3])}[len(stored)]
            for start in (0, 5, 11)
        ]
        assert (crops == np.stack(expected)).all()
        assert set(labels.numpy()[6 * number : 6 * number + 6]) == {dataset.classes.index(row["label"])}


def test_neighbours_in_a_shard_are_separated(dataset: Dataset) -> None:
    """Of 4,000 clips in 40 shards hardly any pair stays together; by chance it would be one in 2,000."""
    order = np.array(_order(_with_shards(dataset, 40, clips=100), 100))
    assert sorted(order.tolist()) == list(range(4000))
    assert (np.abs(np.diff(order)) == 1).mean() < 0.005
    # Clips also move far: in a uniform order by a third of the epoch on average.
    assert np.abs(order - np.arange(4000)).mean() > 0.2 * 4000


def test_indices_in_epoch_order_are_those_of_the_training_clips(
    dataset: Dataset, epoch_clips: list[tuple], clips_in_order: list[tuple]
) -> None:
    """Training reads the cached features of an epoch by these indices."""
    indices = indices_in_epoch_order(dataset, split="train", seed=1, epoch=0, skip_clips=2)
    assert [clips_in_order[index] for index in indices.as_numpy_iterator()] == epoch_clips[2:]


def test_the_last_batch_is_padded_with_examples_of_weight_0(dataset: Dataset) -> None:
    *_, (inputs, label, weight) = _eval(dataset, "test", batch_size=4)
    assert weight.numpy().tolist() == [1, 1, 0, 0]
    assert inputs["mask"].numpy()[2:].tolist() == [[True, False, False, False]] * 2
    assert label.shape == (4,)
    assert not inputs["frames"].numpy()[2:].any()


def test_a_batch_larger_than_the_split_is_padded(dataset: Dataset) -> None:
    ((_, _, weight),) = _eval(dataset, "val", batch_size=16)
    assert weight.numpy().tolist() == [1] * 2 + [0] * 14


def test_a_shard_cut_at_the_end_of_a_record_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    """TFRecord reads such a file without an error; the count in dataset_info.json detects it."""
    folder = Path(shutil.copytree(dataset.data_dir, tmp_path / "copy"))
    first, *others = dataset.info.splits["train"]
    path = folder / first.name
    data = path.read_bytes()
    path.write_bytes(data[: record_start(data, 1)])
    shortened = (dataclasses.replace(first, bytes=path.stat().st_size), *others)
    info = dataclasses.replace(dataset.info, splits=dataset.info.splits | {"train": shortened})
    with pytest.raises(tf.errors.FailedPreconditionError, match="contain 8 elements but contained only"):
        _clips(_train(Dataset(str(folder), str(folder), info)))


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(4, 4, 0, 0), (4, 7, 0, 1), (4, 8, 0, 2), (9, 4, 2, 0)],
    ids=["square", "odd", "landscape", "portrait"],
)
def test_centre_view(height: int, width: int, top: int, left: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    cropped = centre_view(tf.constant(frames), ClipSpec(num_frames=2, height=4, width=4))
    assert (cropped.numpy() == frames[:, top : top + 4, left : left + 4]).all()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_pad_clip(count: int) -> None:
    frames = np.random.default_rng(0).integers(1, 256, (count, 2, 2, 3), np.uint8)
    padded, mask = pad_clip(tf.constant(frames), 4)
    assert (padded.numpy()[:count] == frames).all()
    assert not padded.numpy()[count:].any()
    assert mask.numpy().tolist() == [index < count for index in range(4)]
