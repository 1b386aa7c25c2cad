"""Reads a whole dataset and names every problem by shard, position and video."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator

import tensorflow as tf

from vidpipe.config import SPLITS, fingerprint, to_dict
from vidpipe.data import shards
from vidpipe.data.corruption import check_records, rows_by_shard
from vidpipe.errors import first_line
from vidpipe.progress import Progress
from vidpipe.storage import files


def verify(data_dir: str) -> Iterator[str]:
    """Yields a line per problem; nothing for a dataset that is exactly as it was converted.

    Checks that:
    - dataset_info.json agrees with its own fingerprint, lists complete shards of each split, and has the
      settings that it repeats;
    - videos.csv has its digest, the number of videos of each split, and the clips of each shard;
    - every shard exists, with its size and sha256, and there are no other shards in the folder;
    - every record has a valid checksum, the listed video and label, and frames that decode to their size;
    - no video is listed twice, and no group is in both train and val.
    """
    try:
        info = shards.read_info(data_dir)
        yield from _check_info(info)
        rows = shards.read_videos(data_dir)
        if files.sha256_of(posixpath.join(data_dir, shards.VIDEOS_NAME)) != info.videos_sha256:
            yield (
                f"{shards.VIDEOS_NAME}: its sha256 differs from the one in {shards.INFO_NAME}; one of the "
                "files was edited"
            )
        found = shards.shard_names_in(data_dir)
    except (shards.ShardError, tf.errors.OpError) as error:
        yield first_line(error)
        return
    yield from _check_rows(rows, info)
    listed = {shard.name: shard for split in SPLITS for shard in info.splits[split]}
    for name in found:
        if name not in listed:
            yield f"{name}: does not belong to the dataset; delete it"
    shard_rows = rows_by_shard(rows)
    name_of_digest = {shard.sha256: name for name, shard in listed.items()}
    with Progress("Verifying", sum(info.num_clips(split) for split in SPLITS), "clips") as progress:
        for name, shard in listed.items():
            address = posixpath.join(data_dir, name)
            try:
                yield from _check_shard(address, shard, info, shard_rows[name], name_of_digest)
            except tf.errors.OpError as error:
                yield f"{name}: cannot be read: {first_line(error)}"
            progress.advance(shard.clips)


def _check_info(info: shards.DatasetInfo) -> Iterator[str]:
    # Earlier versions took the fingerprint of the settings alone.
    if info.fingerprint not in (
        shards.fingerprint_of(info.settings, info.splits),
        fingerprint(info.settings),
    ):
        yield f"{shards.INFO_NAME}: its settings or shards do not match its fingerprint; the file was edited"
    repeated = {"classes": list(info.classes), "clip": to_dict(info.clip), "encoding": info.encoding}
    for name, value in repeated.items():
        if info.settings.get(name) != value:
            yield f"{shards.INFO_NAME}: {name} differs from the conversion's settings; the file was edited"
    for split in SPLITS:
        names = [shard.name for shard in info.splits[split]]
        expected = [shards.shard_name(split, index, len(names)) for index in range(len(names))]
        if names != expected:
            yield (
                f"{shards.INFO_NAME}: the shards of {split} are {', '.join(names)}; some are missing or "
                "foreign"
            )


def _check_rows(rows: list[dict[str, str]], info: shards.DatasetInfo) -> Iterator[str]:
    num_videos = Counter(row["split"] for row in rows)
    if dict(num_videos) != info.settings.get("videos"):
        yield (
            f"{shards.VIDEOS_NAME}: lists {dict(num_videos)} videos; the conversion's settings say "
            f"{info.settings.get('videos')}"
        )
    positions: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            positions[row["split"], row["shard"]].append(int(row["position"]))
    clips = {(split, shard.name): shard.clips for split in SPLITS for shard in info.splits[split]}
    for split, name in sorted(clips.keys() | positions.keys()):
        if positions[split, name] != list(range(clips.get((split, name), 0))):
            yield (
                f"{shards.VIDEOS_NAME}: lists {len(positions[split, name])} clips of {split} in "
                f"{name or 'no shard'}, which holds {clips.get((split, name), 0)}, or in another order"
            )
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
    name_of_digest: dict[str, str],
) -> Iterator[str]:
    size = files.size_of(address)
    if size is None:
        yield f"{shard.name}: missing, with {shard.clips} clips"
        return
    sha256 = files.sha256_of(address)
    if sha256 != shard.sha256:
        if sha256 in name_of_digest:
            yield f"{shard.name}: holds the content of {name_of_digest[sha256]}"
            return
        yield f"{shard.name}: its sha256 differs from the one in {shards.INFO_NAME}"
    if size != shard.bytes:
        yield f"{shard.name}: {size} bytes instead of {shard.bytes}"
    yield from check_records(address, shard, info, rows)
