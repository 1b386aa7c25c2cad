"""Evaluated runs that need no model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from vidpipe.config import ModelConfig, TrainConfig, to_dict
from vidpipe.evaluation.metrics import compute_metrics
from vidpipe.storage import files
from vidpipe.training.run_folder import RunFolder

CLASSES = ("a", "b")
# Ten clips; all but the last are of class a.
VIDEO_IDS = [f"clip_{number}.avi" for number in range(10)]
LABELS = [*"aaaaaaaaab"]


@pytest.fixture
def save_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes an evaluated run into the working folder; "+" marks the clips that it classifies correctly."""
    monkeypatch.chdir(tmp_path)

    def save(
        name: str,
        correct: str,
        *,
        seed: int = 1,
        labels: Sequence[str] = LABELS,
        video_ids: Sequence[str] = VIDEO_IDS,
        head: str = "motion",
        temporal_crops: int = 1,
        **changes: object,
    ) -> str:
        config = TrainConfig(data_dir="/data", run_dir=name, model=ModelConfig(head=head), seed=seed)
        run = RunFolder(Path(name))
        folder = run.evaluation("test")
        folder.path.mkdir(parents=True)
        run.write_settings(to_dict(config) | {"dataset": "1f2e", "start_weights": None} | changes)
        indices = np.array([CLASSES.index(label) for label in labels])
        predicted = np.where(np.array([*correct]) == "+", indices, 1 - indices)
        probabilities = np.eye(2)[predicted] * 0.6 + 0.2
        metrics = compute_metrics(indices, probabilities, CLASSES)
        scores = [dict(zip(CLASSES, row, strict=True)) for row in probabilities.tolist()]
        folder.write_predictions(video_ids, labels, scores)
        metrics |= {"split": "test", "temporal_crops": temporal_crops, "spatial_crops": 1}
        metrics["sha256"] = {path.name: files.sha256_of(path) for path in (run.settings, folder.predictions)}
        folder.write_metrics(metrics)
        return name

    return save
