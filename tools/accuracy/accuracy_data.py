"""The features that methods are trained and tested on, and the folds of a cross-validation.

TensorFlow is imported inside the functions that use it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from vidpipe.config import ModelConfig, TrainConfig, fingerprint
from vidpipe.errors import VidpipeError

if TYPE_CHECKING:
    from vidpipe.data.dataset import Dataset
    from vidpipe.model.feature_cache import FeatureTable

FORWARD_CLIPS = 8  # clips per forward pass of a head
_NUM_FOLDS = 5


class TableError(VidpipeError):
    """The datasets do not make a table."""


@dataclass(frozen=True)
class Data:
    """What a method is trained and tested on.

    Attributes:
      dataset: where the clips come from; its splits have as many clips as `tables`.
      backbone_weights: of the backbone that computed the features.
      tables: features of `train`, `test` and, if the method may select an epoch, `val`.
      videos: `video_id` and `group` of the clips of each table.
    """

    dataset: "Dataset"
    backbone_weights: str
    tables: Mapping[str, "FeatureTable"]
    videos: Mapping[str, np.ndarray]

    def train_and_val(self) -> tuple["FeatureTable", np.ndarray]:
        """Returns the features of train and val together, class by class, and their videos."""
        from vidpipe.model.feature_cache import FeatureTable

        splits = [split for split in ("train", "val") if split in self.tables]
        label = np.concatenate([self.tables[split].label for split in splits])
        order = np.argsort(label, kind="stable")
        features = np.concatenate([self.tables[split].features for split in splits])[order]
        mask = np.concatenate([self.tables[split].mask for split in splits])[order]
        videos = np.concatenate([self.videos[split] for split in splits])[order]
        return FeatureTable(features, mask, label[order]), videos

    def key(self) -> str:
        """Returns a digest of the clips and their features, which depend on the backbone."""
        digests = [hashlib.sha256(table.features.tobytes()).hexdigest() for table in self.tables.values()]
        return fingerprint([self.dataset.info.fingerprint, digests])[:16]


def read_data(data_dir: str, backbone_weights: str, *, pixel_differences: bool = False) -> Data:
    """Reads the features of all splits of a dataset, after computing those that are missing.

    Args:
      data_dir: of the dataset.
      backbone_weights: as in ModelConfig; random ones (`none`) are the same in every call.
      pixel_differences: whether the features are of these, too.

    Raises:
      ShardError, BackboneError: the dataset or the weights are invalid.
    """
    import keras

    from vidpipe.data.dataset import open_dataset
    from vidpipe.model import feature_cache
    from vidpipe.model.fused import build_model

    keras.utils.set_random_seed(TrainConfig.seed)
    with open_dataset(data_dir) as dataset:
        frozen = build_model(
            ModelConfig(backbone_weights=backbone_weights, pixel_differences=pixel_differences),
            spec=dataset.clip.spec(dataset.clip.num_frames),
            num_classes=len(dataset.classes),
            stored_frames=dataset.clip.num_frames,
        ).frozen
        assert frozen is not None
        tables, videos = {}, {}
        for split in dataset.info.splits:
            if dataset.num_clips(split) > 0:
                tables[split] = feature_cache.cached_features(
                    frozen, dataset, split=split, cache_dirs=[dataset.read_dir]
                )
                rows = [(row["video_id"], row["group"]) for row in dataset.clip_rows(split)]
                videos[split] = np.array(rows, [("video_id", object), ("group", object)])
        return Data(dataset, backbone_weights, tables, videos)


def check_datasets(data_dirs: Sequence[str]) -> None:
    """Checks that the test clips of several datasets can be compared one by one.

    Raises:
      TableError: a dataset has other test videos than the first, or the sampling of an earlier one.
    """
    from vidpipe.data.dataset import open_dataset

    expected: list[str] = []
    by_sampling: dict[str, str] = {}
    for data_dir in data_dirs:
        with open_dataset(data_dir) as dataset:
            video_ids, sampling = dataset.video_ids("test"), dataset.clip.sampling
        expected = expected or video_ids
        if video_ids != expected:
            raise TableError(
                f"{data_dir} has other test videos than {data_dirs[0]}. Convert the same list of videos; "
                "only --sampling may differ."
            )
        if sampling in by_sampling:
            raise TableError(
                f"{data_dir} and {by_sampling[sampling]} have the same sampling, {sampling}. Make a table "
                "of each, with another --work_dir."
            )
        by_sampling[sampling] = data_dir


def folds(data: Data, seed: int, *, by_group: bool = False) -> Iterator[tuple[np.ndarray, Data]]:
    """Splits train and val into parts that share no group.

    Args:
      data: its test split is not used.
      seed: of the parts.
      by_group: whether each group is a part; otherwise there are five.

    Yields:
      For each part: the indices of its clips in `data.train_and_val()`; and data whose test split is these
      clips, whose train split is the other parts, and which has no val split.
    """
    from sklearn.model_selection import LeaveOneGroupOut, StratifiedGroupKFold

    from vidpipe.data.shards import ShardInfo
    from vidpipe.model.feature_cache import FeatureTable

    table, videos = data.train_and_val()
    groups = videos["group"]
    stratified = StratifiedGroupKFold(_NUM_FOLDS, shuffle=True, random_state=seed)
    splitter = LeaveOneGroupOut() if by_group else stratified
    for trained, held_out in splitter.split(groups, table.label, groups):
        parts = {"train": trained, "test": held_out}
        tables = {
            split: FeatureTable(table.features[indices], table.mask[indices], table.label[indices])
            for split, indices in parts.items()
        }
        # One shard each is all that the order of an epoch depends on.
        splits = {split: (ShardInfo(split, len(indices), 0, ""),) for split, indices in parts.items()}
        info = replace(data.dataset.info, splits=splits | {"val": ()})
        fold_videos = {split: videos[indices] for split, indices in parts.items()}
        dataset = replace(data.dataset, info=info)
        yield held_out, replace(data, dataset=dataset, tables=tables, videos=fold_videos)
