"""Finds corrupt records in the shards of a dataset and describes them: shard, position, video and problem."""

import functools
import itertools
import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

import tensorflow as tf

from vidpipe.config import SPLITS
from vidpipe.data import records, shards
from vidpipe.storage import files


def find_corrupt_record(data_dir: str) -> str | None:
    """Searches the existing shards for the first record that cannot be read.

    Shards with a wrong sha256 are read first: computing a digest takes a tenth of the time of decoding.

    Returns:
      The problem, as `check_records` describes it; None if every record is valid.

    Raises:
      tf.errors.OpError: a file cannot be read at all.
    """
    info = shards.read_info(data_dir)
    rows = rows_by_shard(shards.read_videos(data_dir))

    def has_valid_digest(shard: shards.ShardInfo) -> bool:
        return files.sha256_of(posixpath.join(data_dir, shard.name)) == shard.sha256

    existing = set(shards.shard_names_in(data_dir))
    listed = [shard for split in SPLITS for shard in info.splits[split] if shard.name in existing]
    for shard in sorted(listed, key=has_valid_digest):
        address = posixpath.join(data_dir, shard.name)
        for problem in check_records(address, shard, info, rows[shard.name]):
            return problem
    return None


def rows_by_shard(rows: Iterable[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Groups the rows of videos.csv by shard, in the order of the records."""
    grouped: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        grouped[row["shard"]].append(row)
    return grouped


def check_records(
    address: str, shard: shards.ShardInfo, info: shards.DatasetInfo, rows: Sequence[dict[str, str]]
) -> Iterator[str]:
    """Reads a shard and decodes every frame.

    Args:
      address: address of the shard file.
      shard: what dataset_info.json says about the shard.
      info: the dataset.
      rows: rows of videos.csv of the shard's clips, in the order of the records.

    Yields:
      A line per problem, such as "train-00000-of-00002.tfrecord, position 2, run/a.avi: cannot be decoded".
    """

    def describe(position: int) -> str:
        video = f", {rows[position]['video_id']}" if position < len(rows) else ""
        return f"{shard.name}, position {position}{video}"

    decoded = tf.data.TFRecordDataset(address).map(
        _record_reader(info.encoding), num_parallel_calls=tf.data.AUTOTUNE
    )
    remaining = iter(decoded)
    for position in itertools.count():
        try:
            record = next(remaining)
        except StopIteration:
            break
        except tf.errors.DataLossError as error:
            yield f"{describe(position)}: {symptom(error)}; the rest of the shard cannot be read"
            return
        except tf.errors.InvalidArgumentError as error:
            yield f"{describe(position)}: cannot be decoded ({symptom(error) or error.message})"
            continue
        where = f"{shard.name}, position {position}"
        yield from _check_record(record, where, info, rows[position] if position < len(rows) else None)
    if position < shard.clips:
        yield f"{describe(position)}: the shard ends after {position} of {shard.clips} clips"
    elif position > shard.clips:
        yield f"{shard.name}: holds {position} clips instead of {shard.clips}"


def symptom(error: tf.errors.OpError) -> str | None:
    """Returns TensorFlow's description of a corrupt record in a few words; None for other errors."""
    found = re.search(
        r"(corrupted|truncated) record|contained only \d+ elements|a frame of another size"
        r"|(Invalid PNG|Invalid protocol|Unknown image|jpeg::|DecodeRaw).*",
        error.message,
    )
    return found.group() if found else None


@functools.cache
def _record_reader(encoding: str) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Makes a function that decodes a record into its names, its label and the shape of its frames.

    It is traced once and not once per shard: tracing takes longer than reading a small shard.
    """

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def read(example: tf.Tensor) -> dict[str, tf.Tensor]:
        clip = records.parse_clip(example)
        frames = records.decode_frames(clip["encoded_frames"], encoding, clip["height"], clip["width"])
        names = ("video_id", "label", "label_name")
        return {name: clip[name] for name in names} | {"shape": tf.shape(frames)[:3]}

    return read


def _check_record(
    record: dict[str, tf.Tensor], where: str, info: shards.DatasetInfo, row: dict[str, str] | None
) -> Iterator[str]:
    """Compares a decoded record with the class list, videos.csv and the frame size."""
    video_id, label_name = (
        record[name].numpy().decode(errors="replace") for name in ("video_id", "label_name")
    )
    label = int(record["label"])
    if not 0 <= label < len(info.classes) or info.classes[label] != label_name:
        yield f"{where}, {video_id}: label {label} ({label_name}) does not agree with the class list"
    if row is None or row["video_id"] != video_id or row["label"] != label_name:
        yield f"{where}: holds {video_id} ({label_name}); {shards.VIDEOS_NAME} lists another video there"
        return
    height, width = info.clip.frame_size(int(row["height"]), int(row["width"]))
    found, expected = record["shape"].numpy().tolist(), [int(row["frames_kept"]), height, width]
    if found != expected:
        describe = "{} frames of {} x {} pixels".format
        yield f"{where}, {video_id}: {describe(*found)} instead of {describe(*expected)}"
