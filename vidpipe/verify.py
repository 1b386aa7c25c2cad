"""Reads a dataset from end to end and names all that is wrong with it, by shard, position and video."""

import functools
import itertools
import logging
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from vidpipe import records, remote, shards
from vidpipe.config import fingerprint, to_dict
from vidpipe.progress import Progress
from vidpipe.spec import SPLITS

_log = logging.getLogger(__name__)


def verify(data_dir: str) -> Iterator[str]:
    """Yields one line per thing that is wrong; nothing for a dataset that is as it was converted.

    Checked are dataset_info.json against itself and videos.csv; of every shard its presence, size and sha256;
    of every record its checksum, label, video and place; of every frame that it decodes to its size; that no
    video stands twice and no group in both train and val; and that no other shard lies in the folder.
    """
    try:
        info = shards.read_info(data_dir)
        rows = list(shards.read_videos(data_dir))
    except shards.ShardError as error:
        yield str(error)
        return
    yield from _check_info(data_dir, info)
    yield from _check_rows(rows)
    listed = {shard.name: shard for split in SPLITS for shard in info.splits[split]}
    for name in shards.shard_names_in(data_dir):
        if name not in listed:
            yield f"{name}: does not belong to the dataset"
    expected = _rows_by_shard(rows)
    owner = {shard.sha256: name for name, shard in listed.items()}
    with Progress("Verifying", sum(info.num_clips(split) for split in SPLITS), "clips") as progress:
        for name, shard in listed.items():
            address = posixpath.join(data_dir, name)
            yield from _check_shard(address, shard, info, expected[name], owner)
            progress.advance(shard.clips)


@contextmanager
def named_damage(data_dir: str, copy_of: str | None = None) -> Iterator[None]:
    """Says which record it was when TensorFlow, in the block, cannot read one of `data_dir`.

    Its own error names neither record nor shard. They are looked for only then, so reading costs no more.

    Args:
      data_dir: the dataset that is read.
      copy_of: the remote dataset, where `data_dir` is the folder of its copies.

    Raises:
      ShardError: in place of what TensorFlow raised of a damaged record, or of a remote address that cannot
        be read any more. Errors of another kind pass.
    """
    try:
        yield
    except tf.errors.OpError as error:
        damage = shards.damage_in(error)
        if damage is not None:
            raise shards.ShardError(_describe(data_dir, copy_of, damage)) from error
        if remote.is_remote(copy_of or data_dir) and _is_from_reading(error):
            raise _remote_failure(copy_of or data_dir, error) from error
        raise


def _describe(data_dir: str, copy_of: str | None, damage: str) -> str:
    _log.warning("A record of %s cannot be read (%s); looking for it.", data_dir, damage)
    try:
        found = find_damage(data_dir)
    except tf.errors.OpError as error:
        raise _remote_failure(data_dir, error) from error
    if found is None:
        return (
            f"{data_dir} could not be read ({damage}), but read again every record is whole. Run the same "
            "command again; training goes on from its last checkpoint."
        )
    if copy_of is not None and copy_of != data_dir:
        return (
            f"A copy of {copy_of} in {data_dir} is damaged: {found}. Run the same command again: it copies "
            "that shard anew, and training goes on from its last checkpoint."
        )
    return (
        f"A shard of {data_dir} is damaged: {found}. tools/inspect_shards.py --data_dir={data_dir} --verify "
        "names every damaged record; the tools/convert_videos.py command that made it repairs it."
    )


def _remote_failure(data_dir: str, error: tf.errors.OpError) -> shards.ShardError:
    reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", shards.first_line(error)).strip(" :")
    return shards.ShardError(
        f"{data_dir} cannot be read any more ({reason}). When it can be reached again, run "
        "the same command; training goes on from its last checkpoint."
    )


def _is_from_reading(error: tf.errors.OpError) -> bool:
    """Whether an error comes out of a dataset, or of tf.io.gfile, and not out of the model's step."""
    # Operations stand in double braces; tf.io.gfile names none.
    return "IteratorGetNext" in error.message or "{{" not in error.message


def find_damage(data_dir: str) -> str | None:
    """Looks for the first record that cannot be read, in the shards that are there.

    Shards whose sha256 is wrong are read first: a digest takes a tenth of the time that decoding does.

    Returns:
      Its shard, position, video and what is wrong, as `verify` says it; None when every record can be read.

    Raises:
      tf.errors.OpError: a file cannot be read at all.
    """
    info = shards.read_info(data_dir)
    expected = _rows_by_shard(list(shards.read_videos(data_dir)))

    def is_whole(shard: shards.ShardInfo) -> bool:
        address = posixpath.join(data_dir, shard.name)
        return shards.sha256_of(address) == shard.sha256

    listed = [shard for split in SPLITS for shard in info.splits[split]]
    present = set(shards.shard_names_in(data_dir))
    for shard in sorted((shard for shard in listed if shard.name in present), key=is_whole):
        address = posixpath.join(data_dir, shard.name)
        for problem in _check_records(address, shard, info, expected[shard.name]):
            return problem
    return None


def _rows_by_shard(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """The rows of videos.csv of each shard, in the order of its records."""
    expected: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        expected[row["shard"]].append(row)
    return expected


def _check_info(data_dir: str, info: shards.DatasetInfo) -> Iterator[str]:
    if fingerprint(info.settings) != info.fingerprint:
        yield f"{shards.INFO_NAME}: its settings are not those of its fingerprint; it was edited"
    repeated = {"classes": list(info.classes), "clip": to_dict(info.clip), "encoding": info.encoding}
    for name, value in repeated.items():
        if info.settings.get(name) != value:
            yield f"{shards.INFO_NAME}: {name} differs from the conversion's settings; it was edited"
    if shards.sha256_of(posixpath.join(data_dir, shards.VIDEOS_NAME)) != info.videos_sha256:
        yield f"{shards.VIDEOS_NAME}: its sha256 is not that of {shards.INFO_NAME}; one of them was edited"


def _check_rows(rows: list[dict[str, str]]) -> Iterator[str]:
    for video_id, count in Counter(row["video_id"] for row in rows).items():
        if count > 1:
            yield f"{video_id}: listed {count} times"
    splits_of: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        splits_of[row["group"]].add(row["split"])
    for group, splits in splits_of.items():
        if {"train", "val"} <= splits:
            yield f"group {group}: in both train and val"


def _check_shard(
    address: str,
    shard: shards.ShardInfo,
    info: shards.DatasetInfo,
    rows: list[dict[str, str]],
    owner: dict[str, str],
) -> Iterator[str]:
    size = shards.size_of(address)
    if size is None:
        yield f"{shard.name}: missing, with {shard.clips} clips"
        return
    found = shards.sha256_of(address)
    if found != shard.sha256:
        if found in owner:
            yield f"{shard.name}: holds the content of {owner[found]}"
            return
        yield f"{shard.name}: its sha256 is not that of {shards.INFO_NAME}"
    if size != shard.bytes:
        yield f"{shard.name}: {size} bytes instead of {shard.bytes}"
    yield from _check_records(address, shard, info, rows)


def _check_records(
    address: str, shard: shards.ShardInfo, info: shards.DatasetInfo, rows: list[dict[str, str]]
) -> Iterator[str]:
    def place(position: int) -> str:
        video = f", {rows[position]['video_id']}" if position < len(rows) else ""
        return f"{shard.name}, position {position}{video}"

    read = tf.data.TFRecordDataset(address).map(
        functools.partial(_read_record, encoding=info.encoding), num_parallel_calls=tf.data.AUTOTUNE
    )
    records_read = iter(read)
    for position in itertools.count():
        try:
            record = next(records_read)
        except StopIteration:
            break
        except tf.errors.DataLossError as error:
            yield f"{place(position)}: {shards.damage_in(error)}; what follows is lost"
            return
        except tf.errors.InvalidArgumentError as error:
            yield f"{place(position)}: cannot be decoded ({shards.damage_in(error) or error.message})"
            continue
        where = f"{shard.name}, position {position}"
        yield from _check_record(record, where, info, rows[position] if position < len(rows) else None)
    if position < shard.clips:
        yield f"{place(position)}: the shard ends after {position} of {shard.clips} clips"
    elif position > shard.clips:
        yield f"{shard.name}: holds {position} clips instead of {shard.clips}"


def _read_record(example: tf.Tensor, encoding: str) -> dict[str, tf.Tensor]:
    """What is to be checked of a record once all of its frames were decoded."""
    clip = records.parse_clip(example)
    frames = records.decode_frames(clip["encoded_frames"], encoding, clip["height"], clip["width"])
    names = ("video_id", "label", "label_name")
    return {name: clip[name] for name in names} | {"shape": tf.shape(frames)[:3]}


def _check_record(
    record: dict[str, tf.Tensor], where: str, info: shards.DatasetInfo, row: dict[str, str] | None
) -> Iterator[str]:
    video_id, label_name = (record[name].numpy().decode() for name in ("video_id", "label_name"))
    label = int(record["label"])
    if not 0 <= label < len(info.classes) or info.classes[label] != label_name:
        yield f"{where}, {video_id}: its label is {label} ({label_name}), which the class list does not say"
    if row is None or row["video_id"] != video_id or row["label"] != label_name:
        yield f"{where}: holds {video_id} ({label_name}), not what {shards.VIDEOS_NAME} has there"
    else:
        height, width = info.clip.frame_size(int(row["height"]), int(row["width"]))
        found, expected = record["shape"].numpy().tolist(), [int(row["frames_kept"]), height, width]
        if found != expected:
            describe = "{} frames of {} x {} pixels".format
            yield f"{where}, {video_id}: {describe(*found)} instead of {describe(*expected)}"
