"""Reads a whole dataset and names every problem by shard, position and video."""

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterator

from vidpipe.config import SPLITS, to_dict
from vidpipe.data import shards
from vidpipe.data.corruption import check_records, rows_by_shard
from vidpipe.progress import Progress
from vidpipe.storage import files


def verify(data_dir: str) -> Iterator[str]:
    """Yields a line per problem; nothing for a dataset that is exactly as it was converted.

    Checks that:
    - dataset_info.json agrees with its own fingerprint and with videos.csv;
    - every shard exists, with its size and sha256, and there are no other shards in the folder;
    - every record has a valid checksum, the listed video and label, and frames that decode to their size;
    - no video is listed twice, and no group is in both train and val.
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
            yield f"{name}: does not belong to the dataset; delete it"
    shard_rows = rows_by_shard(rows)
    name_of_digest = {shard.sha256: name for name, shard in listed.items()}
    with Progress("Verifying", sum(info.num_clips(split) for split in SPLITS), "clips") as progress:
        for name, shard in listed.items():
            address = posixpath.join(data_dir, name)
            yield from _check_shard(address, shard, info, shard_rows[name], name_of_digest)
            progress.advance(shard.clips)


def _check_info(data_dir: str, info: shards.DatasetInfo) -> Iterator[str]:
    if shards.fingerprint_of(info.settings, info.splits) != info.fingerprint:
        yield f"{shards.INFO_NAME}: its settings or shards do not match its fingerprint; the file was edited"
    repeated = {"classes": list(info.classes), "clip": to_dict(info.clip), "encoding": info.encoding}
    for name, value in repeated.items():
        if info.settings.get(name) != value:
            yield f"{shards.INFO_NAME}: {name} differs from the conversion's settings; the file was edited"
    if files.sha256_of(posixpath.join(data_dir, shards.VIDEOS_NAME)) != info.videos_sha256:
        yield (
            f"{shards.VIDEOS_NAME}: its sha256 differs from the one in {shards.INFO_NAME}; one of the files "
            "was edited"
        )


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
