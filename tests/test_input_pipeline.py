"""What reaches the model: every clip once, in an order that (seed, epoch) decides, padded behind the mask."""

import dataclasses
import random
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from synthetic import frame_indices_of
from vidpipe import records, shards
from vidpipe.config import ClipConfig
from vidpipe.input_pipeline import centre_crop, eval_dataset, in_epoch_order, pad_clip, train_dataset
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
def test_centre_crop(height: int, width: int, top: int, left: int) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    cropped = centre_crop(tf.constant(frames), ClipSpec(2, 4, 4))
    assert (cropped.numpy() == frames[:, top : top + 4, left : left + 4]).all()


def test_centre_crop_of_frames_that_are_too_small() -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="not compatible"):
        centre_crop(tf.zeros([1, 3, 4, 3], tf.uint8), ClipSpec(1, 4, 4))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_pad_clip(count: int) -> None:
    frames = tf.constant(random.Random(0).randbytes(count * 2 * 2 * 3), tf.string)
    real = tf.reshape(tf.io.decode_raw(frames, tf.uint8), [count, 2, 2, 3])
    padded, mask = pad_clip(real, 4)
    assert (padded.numpy()[:count] == real.numpy()).all()
    assert not padded.numpy()[count:].any()
    assert mask.numpy().tolist() == [index < count for index in range(4)]
