"""What reaches the model: every clip once, in an order that (seed, epoch) decides, padded behind the mask."""

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from synthetic import frame_indices_of
from vidpipe import records, shards
from vidpipe.config import ClipConfig
from vidpipe.input_pipeline import (
    InputError,
    centre_view,
    eval_dataset,
    in_epoch_order,
    pad_clip,
    train_dataset,
)
from vidpipe.spec import ClipSpec
from vidpipe.video import read_clip


def _clips(batches: Iterable) -> list[tuple]:
    """Each real clip as (frames, mask, label), hashable."""
    return [
        (frames.tobytes(), mask.tobytes(), int(label))
        for inputs, labels, weights in batches
        for frames, mask, label, weight in zip(
            inputs["frames"].numpy(), inputs["mask"].numpy(), labels.numpy(), weights.numpy(), strict=True
        )
        if weight > 0
    ]


def test_clips_hold_the_sampled_frames_then_zeros(data_dir: str, info: shards.DatasetInfo) -> None:
    rows = shards.clip_rows(data_dir, "test")
    seen = 0
    for inputs, label, weight in eval_dataset(data_dir, info, 6, "test"):
        assert inputs["frames"].shape == (6, 4, 32, 32, 3)
        assert (inputs["frames"].dtype, inputs["mask"].dtype) == (tf.uint8, tf.bool)
        assert (label.dtype, weight.dtype) == (tf.int32, tf.float32)
        for row, frames, mask, index in zip(
            rows, inputs["frames"].numpy(), inputs["mask"].numpy(), label.numpy(), strict=True
        ):
            length = int(row["frames_decoded"])
            count = min(length, 4)
            expected = [(2 * i + 1) * length // (2 * count) for i in range(count)]
            assert frame_indices_of(frames[mask]) == expected
            assert mask.tolist() == [True] * count + [False] * (4 - count)
            assert (frames[~mask] == 0).all()
            assert info.classes[index] == row["label"]
            seen += 1
    assert seen == 6


def test_whole_frames_reach_the_model_as_their_centre_square(
    tmp_path: Path, wide_and_tall: Path, convert_wide_and_tall: Callable[..., ClipConfig]
) -> None:
    """Landscape and portrait videos in one batch; training and evaluation see the same."""
    clip = convert_wide_and_tall(tmp_path, "raw", "short_side")
    info = shards.read_info(str(tmp_path))
    expected = {}
    for row in shards.clip_rows(str(tmp_path), "train"):
        stored = read_clip(str(wide_and_tall / row["video_id"]), clip).frames
        assert stored.shape[1:3] == ((32, 43) if row["label"] == "wide" else (43, 32))
        square = stored[:, :, 5:37] if row["label"] == "wide" else stored[:, 5:37]
        expected[square.tobytes()] = info.classes.index(row["label"])
    for dataset in (
        eval_dataset(str(tmp_path), info, 4, "train"),
        train_dataset(str(tmp_path), info, 4, seed=1, epoch=0),
    ):
        ((inputs, label, _),) = dataset
        assert inputs["frames"].shape == (4, 4, 32, 32, 3)
        frames, mask = inputs["frames"].numpy(), inputs["mask"].numpy()
        found = {frames[row][mask[row]].tobytes(): int(label[row]) for row in range(4)}
        assert found == expected


def test_every_clip_comes_once_per_epoch_in_another_order(data_dir: str, info: shards.DatasetInfo) -> None:
    in_order = _clips(eval_dataset(data_dir, info, 3, "train"))
    epochs = [_clips(train_dataset(data_dir, info, 3, seed=1, epoch=epoch)) for epoch in range(3)]
    assert len(set(in_order)) == 8
    assert all(sorted(epoch) == sorted(in_order) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, in_order]}) == 4


def test_the_order_is_a_function_of_seed_and_epoch(data_dir: str, info: shards.DatasetInfo) -> None:
    first = _clips(train_dataset(data_dir, info, 3, seed=1, epoch=2))
    assert first == _clips(train_dataset(data_dir, info, 3, seed=1, epoch=2))
    assert first != _clips(train_dataset(data_dir, info, 3, seed=2, epoch=2))


@pytest.mark.parametrize("skip_batches", [1, 2, 3])
def test_skipping_gives_the_tail(data_dir: str, info: shards.DatasetInfo, skip_batches: int) -> None:
    whole = _clips(train_dataset(data_dir, info, 3, seed=1, epoch=0))
    tail = _clips(train_dataset(data_dir, info, 3, seed=1, epoch=0, skip_batches=skip_batches))
    assert tail == whole[3 * skip_batches :]


@pytest.mark.parametrize("skip_clips", [0, 1, 4, 7])
def test_evaluation_skips_clips_without_decoding_them(
    data_dir: str, info: shards.DatasetInfo, skip_clips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _clips(eval_dataset(data_dir, info, 3, "train"))
    decoded: list[int] = []
    original = records.decode_frames

    def count(encoded: np.ndarray) -> np.ndarray:
        decoded.append(len(encoded))
        return encoded

    def counting(encoded: tf.Tensor, *arguments: object) -> tf.Tensor:
        counted = tf.ensure_shape(tf.numpy_function(count, [encoded], tf.string), encoded.shape)
        return original(counted, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "decode_frames", counting)
    dataset = eval_dataset(data_dir, info, 3, "train", skip_clips=skip_clips)
    assert len(dataset) == -(-(8 - skip_clips) // 3)
    assert _clips(dataset) == whole[skip_clips:]
    assert len(decoded) == 8 - skip_clips


def test_skipped_clips_take_all_their_views_with_them(data_dir: str, info: shards.DatasetInfo) -> None:
    views = {"num_frames": 2, "num_clips": 2}
    whole = _clips(eval_dataset(data_dir, info, 3, "train", **views))
    assert _clips(eval_dataset(data_dir, info, 3, "train", **views, skip_clips=5)) == whole[10:]


@pytest.mark.parametrize("global_seed", [None, 7])
def test_the_order_is_the_same_on_every_machine_and_version(
    info: shards.DatasetInfo, global_seed: int | None
) -> None:
    """Written down once; another TensorFlow, machine or global seed must give it too."""
    tf.random.set_seed(global_seed)
    shard_sizes = tuple(shards.ShardInfo(f"{index}", 3, 0, "") for index in range(4))
    small = dataclasses.replace(info, splits=info.splits | {"train": shard_sizes})
    order = in_epoch_order(
        lambda shard: tf.data.Dataset.range(shard * 3, shard * 3 + 3), small, "train", 5, 2, 0
    )
    assert list(order.as_numpy_iterator()) == [6, 5, 1, 7, 0, 11, 9, 4, 8, 2, 10, 3]


@pytest.mark.parametrize("threads", [1, 16])
def test_the_number_of_threads_changes_nothing(data_dir: str, info: shards.DatasetInfo, threads: int) -> None:
    drawn = {"num_frames": 3, "augmentation": "flip_crop_colour"}
    usual = _clips(train_dataset(data_dir, info, 3, 1, 0, **drawn))  # type: ignore[arg-type]
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = train_dataset(data_dir, info, 3, 1, 0, **drawn)  # type: ignore[arg-type]
    assert _clips(dataset.with_options(options)) == usual


def test_augmentation_is_drawn_anew_in_each_epoch_and_skipping_does_not_change_it(
    data_dir: str, info: shards.DatasetInfo
) -> None:
    first, second = (
        _clips(train_dataset(data_dir, info, 3, 1, epoch, num_frames=3, augmentation="flip_crop_colour"))
        for epoch in (0, 1)
    )
    assert len(set(first) | set(second)) == 16
    tail = train_dataset(
        data_dir, info, 3, 1, 0, skip_batches=1, num_frames=3, augmentation="flip_crop_colour"
    )
    assert _clips(tail) == first[3:]


def _frames_seen(batches: Iterable) -> set[tuple[int, ...]]:
    """For each clip the places in the video that its frames tell."""
    return {
        tuple(frame_indices_of(frames[mask]))
        for inputs, _, _ in batches
        for frames, mask in zip(inputs["frames"].numpy(), inputs["mask"].numpy(), strict=True)
    }


def test_frames_are_drawn_one_from_each_segment_in_order(data_dir: str, info: shards.DatasetInfo) -> None:
    """Of four stored frames two: one of the first two and one of the last two, in time all of them."""
    stored = [frames for frames in _frames_seen(eval_dataset(data_dir, info, 8, "train")) if len(frames) == 4]
    assert len(stored) >= 3
    epochs = (train_dataset(data_dir, info, 8, 1, epoch, num_frames=2) for epoch in range(16))
    drawn = set().union(*map(_frames_seen, epochs))
    for a, b, c, d in stored:
        assert {(a, c), (a, d), (b, c), (b, d)} <= drawn


def test_mixed_clips_are_made_of_the_clips_of_their_batch(data_dir: str, info: shards.DatasetInfo) -> None:
    """Eight clips in batches of three: what is in each, by the labels' shares; the last has one filler."""
    plain = list(train_dataset(data_dir, info, 3, 1, 0))
    mixed = list(train_dataset(data_dir, info, 3, 1, 0, mixup=0.4))
    assert len(mixed) == 3
    shares = []
    for (inputs, label, weight), (mixed_inputs, soft, same_weight) in zip(plain, mixed, strict=True):
        assert (weight.numpy() == same_weight.numpy()).all()
        frames = inputs["frames"].numpy().astype(float)
        for row in range(3):
            if weight[row] == 0 or weight[row - 1] == 0:
                assert (mixed_inputs["frames"][row].numpy() == frames[row]).all()
                continue
            assert soft[row].numpy().sum() == pytest.approx(1)
            own, other = int(label[row]), int(label[row - 1])
            if own == other:
                continue
            share = float(soft[row, own])
            shares.append(share)
            expected = share * frames[row] + (1 - share) * frames[row - 1]
            np.testing.assert_allclose(mixed_inputs["frames"][row], expected, atol=0.51)
            both = inputs["mask"][row].numpy() | inputs["mask"][row - 1].numpy()
            assert (mixed_inputs["mask"][row].numpy() == both).all()
    assert len(shares) >= 2 and len(set(shares)) == len(shares)


@pytest.mark.parametrize("num_replicas", [2, 3, 5])
@pytest.mark.parametrize("skip_batches", [0, 1])
def test_replicas_share_the_epoch_batch_by_batch(
    data_dir: str, info: shards.DatasetInfo, num_replicas: int, skip_batches: int
) -> None:
    """Eight clips, two a batch: all of them once, in the order of one worker with batches as large as all."""
    batch_size = 2
    together = batch_size * num_replicas
    whole = _clips(train_dataset(data_dir, info, together, 1, 0))[skip_batches * together :]
    parts = [
        list(
            train_dataset(
                data_dir, info, batch_size, 1, 0, skip_batches, num_replicas=num_replicas, replica=replica
            )
        )
        for replica in range(num_replicas)
    ]
    steps = -(-8 // together) - skip_batches
    assert [len(part) for part in parts] == [steps] * num_replicas
    assert [
        clip for step in range(steps) for part in parts for clip in _clips(part[step : step + 1])
    ] == whole


@pytest.fixture
def service() -> Iterator[str]:
    """The address of a tf.data service with two workers, all on this machine."""
    servers = tf.data.experimental.service
    dispatcher = servers.DispatchServer(servers.DispatcherConfig(port=0))
    address = dispatcher.target.removeprefix("grpc://")
    workers = [servers.WorkerServer(servers.WorkerConfig(dispatcher_address=address)) for _ in range(2)]
    yield address
    del workers, dispatcher


def test_a_data_service_gives_every_clip_once_and_draws_the_same(
    data_dir: str, info: shards.DatasetInfo, service: str
) -> None:
    """Its order is its own; which frames, crops and colours a clip gets is not."""
    for epoch in range(2):
        ours, theirs = (
            train_dataset(data_dir, info, 3, 1, epoch, augmentation="flip_crop_colour", service=address)
            for address in (None, service)
        )
        assert theirs.cardinality() == 3
        assert sorted(_clips(theirs)) == sorted(_clips(ours))


def test_a_data_service_that_is_not_there(data_dir: str, info: shards.DatasetInfo) -> None:
    with pytest.raises(InputError, match="No tf.data service at localhost:1 .*refused.*Start its dispatcher"):
        train_dataset(data_dir, info, 3, 1, 0, service="localhost:1")
    with pytest.raises(InputError, match="No tf.data service at nonsense"):
        train_dataset(data_dir, info, 3, 1, 0, service="nonsense")


def test_a_budget_for_the_buffers_changes_no_clip(data_dir: str, info: shards.DatasetInfo) -> None:
    budgeted = train_dataset(data_dir, info, 3, 1, 0, ram_gb=0.25)
    assert budgeted.options().autotune.ram_budget == 2**28
    assert _clips(budgeted) == _clips(train_dataset(data_dir, info, 3, 1, 0))


def test_the_shuffle_buffer_is_bounded_in_bytes(info: shards.DatasetInfo) -> None:
    """Raw clips of 20 x 224 x 224 have 3 MB: of 2,048 of them the buffer would have 6 GB."""
    raw = (shards.ShardInfo("0", 10_000, 10_000 * 3_010_560, ""),)
    large = dataclasses.replace(info, splits=info.splits | {"train": raw})
    order = in_epoch_order(lambda _: tf.data.Dataset.range(10_000), large, "train", 1, 0, 0)
    first = next(order.as_numpy_iterator())
    assert first < 2**30 // 3_010_560


def test_views_of_a_clip_follow_each_other(
    tmp_path: Path, wide_and_tall: Path, convert_wide_and_tall: Callable[..., ClipConfig]
) -> None:
    """Two views in time, other frames of those that are stored, and three places along the long side."""
    clip = convert_wide_and_tall(tmp_path, "raw", "short_side")
    info = shards.read_info(str(tmp_path))
    rows = shards.clip_rows(str(tmp_path), "train")
    ((inputs, labels, weights),) = eval_dataset(
        str(tmp_path), info, 6 * len(rows), "train", num_frames=2, num_clips=2, num_crops=3
    )
    assert weights.numpy().tolist() == [1] * 6 * len(rows)
    for number, row in enumerate(rows):
        stored = read_clip(str(wide_and_tall / row["video_id"]), clip).frames
        views = inputs["frames"].numpy()[6 * number : 6 * number + 6]
        expected = [
            stored[times, :, place : place + 32]
            if row["label"] == "wide"
            else stored[times, place : place + 32]
            for times in {3: ([0, 1], [1, 2]), 4: ([0, 2], [1, 3])}[len(stored)]
            for place in (0, 5, 11)
        ]
        assert (views == np.stack(expected)).all()
        assert set(labels.numpy()[6 * number : 6 * number + 6]) == {info.classes.index(row["label"])}


def test_neighbours_in_the_shards_do_not_stay_neighbours(info: shards.DatasetInfo) -> None:
    """Of 4,000 clips in 40 shards hardly any pair stays together: by chance one in 2,000."""
    many = tuple(shards.ShardInfo(f"{index}", 100, 0, "") for index in range(40))
    large = dataclasses.replace(info, splits=info.splits | {"train": many})
    order = in_epoch_order(
        lambda shard: tf.data.Dataset.range(shard * 100, shard * 100 + 100), large, "train", 1, 0, 0
    )
    places = np.array(list(order.as_numpy_iterator()))
    assert sorted(places.tolist()) == list(range(4000))
    assert (np.abs(np.diff(places)) == 1).mean() < 0.005
    # and a clip moves far: a third of the epoch on average where the order is uniform
    assert np.abs(places - np.arange(4000)).mean() > 0.2 * 4000


def test_the_last_batch_is_filled_with_weightless_rows(data_dir: str, info: shards.DatasetInfo) -> None:
    *_, (inputs, label, weight) = eval_dataset(data_dir, info, 4, "test")
    assert weight.numpy().tolist() == [1, 1, 0, 0]
    assert inputs["mask"].numpy()[2:].tolist() == [[True, False, False, False]] * 2
    assert label.shape == (4,)
    assert not inputs["frames"].numpy()[2:].any()


def test_a_batch_larger_than_the_split_is_filled(data_dir: str, info: shards.DatasetInfo) -> None:
    ((_, _, weight),) = eval_dataset(data_dir, info, 16, "val")
    assert weight.numpy().sum() == 2


def test_a_shard_cut_at_a_record_border_is_not_a_shorter_epoch(
    data_dir: str, info: shards.DatasetInfo, tmp_path: Path
) -> None:
    """TFRecord reads such a file without an error; the count in dataset_info.json finds it."""
    folder = Path(shutil.copytree(data_dir, tmp_path / "copy"))
    path = folder / info.splits["train"][0].name
    length = int.from_bytes(path.read_bytes()[:8], "little")
    path.write_bytes(path.read_bytes()[: 12 + length + 4])
    shard = dataclasses.replace(info.splits["train"][0], bytes=path.stat().st_size)
    lying = dataclasses.replace(info, splits=info.splits | {"train": (shard, *info.splits["train"][1:])})
    with pytest.raises(
        tf.errors.FailedPreconditionError, match="expected to contain 8 elements but contained only"
    ):
        _clips(train_dataset(str(folder), lying, 3, seed=1, epoch=0))


def test_skipped_clips_are_not_decoded(
    data_dir: str, info: shards.DatasetInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[bytes] = []
    original = records.decode_frames

    def counting(encoded: tf.Tensor, *rest: object) -> tf.Tensor:
        def note(frames: np.ndarray) -> np.ndarray:
            decoded.append(frames[0])
            return frames

        noted = tf.numpy_function(note, [encoded], tf.string)
        return original(tf.ensure_shape(noted, [None]), *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "decode_frames", counting)
    _clips(train_dataset(data_dir, info, 3, seed=1, epoch=0, skip_batches=2))
    assert len(decoded) == 2


@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(4, 4, 0, 0), (4, 7, 0, 1), (4, 8, 0, 2), (9, 4, 2, 0)],
    ids=["as it is", "odd", "landscape", "portrait"],
)
def test_centre_view(height: int, width: int, top: int, left: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    cropped = centre_view(tf.constant(frames), ClipSpec(2, 4, 4))
    assert (cropped.numpy() == frames[:, top : top + 4, left : left + 4]).all()


@pytest.mark.parametrize("count", [1, 3, 4])
def test_pad_clip(count: int) -> None:
    frames = tf.constant(random.Random(0).randbytes(count * 2 * 2 * 3), tf.string)
    real = tf.reshape(tf.io.decode_raw(frames, tf.uint8), [count, 2, 2, 3])
    padded, mask = pad_clip(real, 4)
    assert (padded.numpy()[:count] == real.numpy()).all()
    assert not padded.numpy()[count:].any()
    assert mask.numpy().tolist() == [index < count for index in range(4)]
