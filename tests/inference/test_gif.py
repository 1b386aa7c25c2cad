"""Animations show the frames that the model saw, with the prediction below them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from synthetic import position_frames
from vidpipe.inference import gif


def test_a_gif_shows_enlarged_frames_and_a_caption(tmp_path: Path) -> None:
    frames = position_frames(4, height=32, width=32)
    gif.write(tmp_path / "a.gif", frames, {"red": 0.9, "blue": 0.1})
    with Image.open(tmp_path / "a.gif") as image:
        assert (len(list(ImageSequence.Iterator(image))), image.size) == (4, (224, 254))
        assert image.info["loop"] == 0
        for index, frame in enumerate(frames):
            image.seek(index)
            assert image.info["duration"] == 150
            pixels = np.asarray(image.convert("RGB")).astype(int)
            assert np.abs(pixels[3:224:7, 3:224:7] - frame).mean() < 3  # 256 colours
            assert pixels[224:].max() > 200
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_a_long_class_name_is_shortened_and_its_probability_is_not(tmp_path: Path) -> None:
    """Two names that are too long give the same caption, within the width of the frames."""
    frames = np.zeros((1, 224, 224, 3), np.uint8)
    captions = []
    for name in ("W" * 40, "W" * 60):
        gif.write(tmp_path / "a.gif", frames, {name: 0.5})
        with Image.open(tmp_path / "a.gif") as image:
            captions.append(np.asarray(image.convert("L"))[224:])
    assert (captions[0] == captions[1]).all()
    columns = np.flatnonzero(captions[0].max(axis=0) > 100)
    assert columns.min() > 2
    assert columns.max() < 221


def test_a_gif_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gif.write(tmp_path / "no" / "a.gif", position_frames(1), {"red": 1.0})
