"""Small models and clips for the tests of this package."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from vidpipe.config import ClipSpec, ModelConfig
from vidpipe.model.fused import FusedModel, build_model


@pytest.fixture(scope="session")
def build() -> Callable[..., FusedModel]:
    """Builds a model with random weights for clips of 4 frames of 32 x 32 pixels; `motion` has 2 members."""

    def make(
        head: str = "motion", *, num_frames: int = 4, num_classes: int = 3, seed: int = 1, **settings: Any
    ) -> FusedModel:
        keras.utils.set_random_seed(seed)
        ensemble_size = 2 if head == "motion" else None
        defaults: dict[str, Any] = {"backbone_weights": "none", "ensemble_size": ensemble_size}
        return build_model(
            ModelConfig(head=head, **(defaults | settings)),
            spec=ClipSpec(num_frames=num_frames, height=32, width=32),
            num_classes=num_classes,
            stored_frames=num_frames,
        )

    return make


@pytest.fixture(scope="session")
def inputs() -> dict[str, np.ndarray]:
    """Three clips with 3, 1 and 4 real frames of noise; padding frames are black."""
    mask = np.array([[True, True, True, False], [True, False, False, False], [True] * 4])
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3), np.uint8)
    return {"frames": frames * mask[..., None, None, None], "mask": mask}
