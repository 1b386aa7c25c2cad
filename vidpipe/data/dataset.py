"""Opens a dataset for reading. All code opens datasets here, because read errors are translated here.

with open_dataset("s3://bucket/records", cache_dir="/data/copies") as dataset:
    dataset.fetch("train")
    for inputs, label, weight in train_dataset(dataset, ...):
        ...
"""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from vidpipe.config import ClipConfig
from vidpipe.data import corruption, shard_cache, shards
from vidpipe.errors import first_line
from vidpipe.storage import remote

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Dataset:
    """A committed dataset, open for reading.

    Attributes:
      data_dir: the address that the user gave; messages name it.
      read_dir: the folder that is read: `data_dir`, or that of the local copies.
      info: the content of dataset_info.json.
    """

    data_dir: str
    read_dir: str
    info: shards.DatasetInfo

    @property
    def classes(self) -> tuple[str, ...]:
        """The ordered class names; a label is an index into them."""
        return self.info.classes

    @property
    def clip(self) -> ClipConfig:
        """How the videos were converted to clips."""
        return self.info.clip

    @property
    def train_splits(self) -> tuple[str, ...]:
        """The splits that training reads: train, and val if it has clips."""
        return ("train", "val") if self.num_clips("val") > 0 else ("train",)

    def num_clips(self, split: str) -> int:
        """Returns the number of clips in a split."""
        return self.info.num_clips(split)

    def clip_rows(self, split: str) -> list[dict[str, str]]:
        """Lists the rows of videos.csv of a split's clips, in the order of its records."""
        return shards.clip_rows(self.read_dir, split, sha256=self.info.videos_sha256)

    def video_rows(self) -> list[dict[str, str]]:
        """Lists all rows of videos.csv, also those of skipped videos."""
        return shards.read_videos(self.read_dir, sha256=self.info.videos_sha256)

    def video_ids(self, split: str) -> list[str]:
        """Lists the video_ids of a split's clips, in the order of its records."""
        return [row["video_id"] for row in self.clip_rows(split)]

    def clip_sec(self, split: str) -> tuple[float, float, float] | None:
        """Returns the quantiles 0.1, 0.5 and 0.9 of the durations of clips, seconds; None if unknown."""
        known = [seconds for row in self.clip_rows(split) if (seconds := shards.duration_of(row)) > 0]
        if not known:
            return None
        shortest, median, longest = np.quantile(known, [0.1, 0.5, 0.9]).round(3).tolist()
        return shortest, median, longest

    def shard_paths(self, split: str) -> list[str]:
        """Lists the paths of a split's shards after checking that each exists and has its size.

        Raises:
          ShardError: a shard is missing or has another size, or the split has no clips.
        """
        return shards.shard_paths(self.read_dir, self.info, split)

    def fetch(self, split: str) -> None:
        """Makes the shards of a split ready to be read; with a `cache_dir`, copies those missing there.

        Raises:
          ShardError: a shard is missing, has another size, or was copied with another sha256.
          ShardCacheError: the copies cannot be written.
        """
        shard_cache.fetch_shards(self.data_dir, self.read_dir, self.info, split)
        self.shard_paths(split)


@contextmanager
def open_dataset(data_dir: str, cache_dir: str | None = None) -> Iterator[Dataset]:
    """Opens a committed dataset for a block of code.

    A TensorFlow error inside the block becomes a ShardError if it comes from a corrupt record, which the
    message names, or from a remote address that no longer answers. TensorFlow's own error names neither
    record nor shard; they are searched only after an error, so reading is not slower. Other errors pass.

    Args:
      data_dir: a folder or a remote address.
      cache_dir: folder for local copies of a remote dataset; None reads it over the network.

    Raises:
      ShardError, RemoteError: as in `shards.read_info`, and for the errors above.
      ShardCacheError: the copies cannot be written.
    """
    read_dir = data_dir
    try:
        read_dir = shard_cache.cached_dir(data_dir, cache_dir)
        yield Dataset(data_dir, read_dir, shards.read_info(read_dir))
    except tf.errors.OpError as error:
        symptom = corruption.symptom(error)
        if symptom is not None:
            raise shards.ShardError(_describe(data_dir, read_dir, symptom)) from error
        if remote.is_remote(data_dir) and _is_from_reading(error):
            raise _remote_failure(data_dir, error) from error
        raise


def _describe(data_dir: str, read_dir: str, symptom: str) -> str:
    _log.warning("A record of %s cannot be read (%s); searching for it.", read_dir, symptom)
    try:
        found = corruption.find_corrupt_record(read_dir)
    except tf.errors.OpError as error:
        raise _remote_failure(read_dir, error) from error
    if found is None:
        return (
            f"{read_dir} could not be read ({symptom}), but a second read found every record valid. Run the "
            "same command again; training resumes from its last checkpoint."
        )
    if read_dir != data_dir:
        return (
            f"A local copy of {data_dir} in {read_dir} is corrupt: {found}. Run the same command again: it "
            "copies that shard again, and training resumes from its last checkpoint."
        )
    return (
        f"A shard of {data_dir} is corrupt: {found}. tools/inspect_shards.py --data_dir={data_dir} --verify "
        "names every corrupt record; the tools/convert_videos.py command that made the dataset repairs it."
    )


def _remote_failure(data_dir: str, error: tf.errors.OpError) -> shards.ShardError:
    reason = re.sub(r"\{\{.*?\}\}|\[Op:.*", "", first_line(error)).strip(" :")
    return shards.ShardError(
        f"{data_dir} can no longer be read ({reason}). When it can be reached again, run the same command; "
        "training resumes from its last checkpoint."
    )


def _is_from_reading(error: tf.errors.OpError) -> bool:
    """Whether an error comes from a tf.data dataset or from tf.io.gfile, and not from a step of the model."""
    # TensorFlow writes operations in double braces; errors of tf.io.gfile name no operation.
    return "IteratorGetNext" in error.message or "{{" not in error.message
