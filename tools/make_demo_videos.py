"""Writes synthetic demo videos of six classes, with train and test lists in the format of UCF101.

    python tools/make_demo_videos.py --output_dir=demo

The classes form three pairs: growing and shrinking, brightening and darkening, red to blue and blue to red.
Both classes of a pair hold the same frames, in opposite order. Texture, position, noise and length vary; the
videos of one group share their texture.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidpipe import command_line
from vidpipe.config import check, setting
from vidpipe.data import video

CLASSES = ("BlueToRed", "Brightening", "Darkening", "Growing", "RedToBlue", "Shrinking")
# Each backward class is its partner played in reverse.
PARTNERS = {"Darkening": "Brightening", "Shrinking": "Growing", "BlueToRed": "RedToBlue"}
_TEST_GROUPS = (1, 2)
_GROUPS = range(1, 9)
_CLIPS_PER_GROUP = 6
_HEIGHT, _WIDTH = 72, 96

_COMMAND = command_line.Command(__doc__)


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Where the demo videos are written."""

    output_dir: str = setting(
        help="Folder in which videos/ and lists/ are written.", group="Input and output"
    )
    seed: int = setting(1, help="Seed of everything that varies.", group="Input and output", at_least=0)

    def __post_init__(self) -> None:
        check(self)


_read_config = _COMMAND.settings(DemoConfig)


def make_frames(class_name: str, texture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Draws one video of a class.

    Args:
      class_name: one of CLASSES.
      texture: float [72, 96, 3], the background, about 0..255.
      random: decides everything else that varies.

    Returns:
      uint8 [n, 72, 96, 3], RGB, n from 6 to 30.
    """
    kind = PARTNERS.get(class_name, class_name)
    num_frames = int(random.integers(6, 31))
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    centre = random.uniform([26, 36], [46, 60])
    distance = np.hypot(rows - centre[0], columns - centre[1])
    colour = random.uniform(0, 40, 3) if random.random() < 0.5 else random.uniform(215, 255, 3)
    slow, fast = sorted(random.uniform(0.6, 1.0, 2))
    frames = []
    for moment in np.linspace(1 - fast, slow, num_frames):
        radius, tint, light = 18.0, colour, 1.0
        if kind == "Growing":
            radius = 3 + 30 * moment
        elif kind == "Brightening":
            light = 0.35 + 0.9 * moment
        else:
            tint = (1 - moment) * np.array([235, 40, 40]) + moment * np.array([40, 40, 235])
        inside = np.clip(radius - distance, 0, 1)[..., np.newaxis]
        frame = ((1 - inside) * texture + inside * tint) * light
        frames.append(frame + random.normal(0, 6, frame.shape))
    played = frames[::-1] if class_name in PARTNERS else frames
    return np.clip(np.stack(played), 0, 255).astype(np.uint8)


def make_texture(random: np.random.Generator) -> np.ndarray:
    """Draws a soft random background: float [72, 96, 3], about 60 to 190."""
    blocks = random.uniform(60, 190, (_HEIGHT // 12, _WIDTH // 12, 3))
    texture: np.ndarray = np.kron(blocks, np.ones((12, 12, 1)))
    for axis in (0, 1):
        texture = np.mean([np.roll(texture, shift, axis) for shift in range(-5, 6)], axis=0)
    return texture


def write_videos(folder: Path, seed: int) -> tuple[int, int]:
    """Writes videos/Class/v_Class_gNN_cMM.avi (or .mp4) and lists/trainlist01.txt, testlist01.txt.

    Returns:
      The numbers of train and test videos.
    """
    random = np.random.default_rng(seed)
    lists: dict[str, list[str]] = {"train": [], "test": []}
    for number, class_name in enumerate(CLASSES, start=1):
        for group in _GROUPS:
            texture = make_texture(random)
            for clip in range(1, _CLIPS_PER_GROUP + 1):
                suffix, fourcc = ("avi", "XVID") if clip % 2 else ("mp4", "mp4v")
                name = f"{class_name}/v_{class_name}_g{group:02d}_c{clip:02d}.{suffix}"
                frames = make_frames(class_name, texture, random)
                video.write_video(str(folder / "videos" / name), frames, fourcc=fourcc)
                if group in _TEST_GROUPS:
                    lists["test"].append(name)
                else:
                    lists["train"].append(f"{name} {number}")
    (folder / "lists").mkdir(exist_ok=True)
    for split, lines in lists.items():
        (folder / "lists" / f"{split}list01.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lists["train"]), len(lists["test"])


def main(arguments: list[str]) -> None:
    """Flags -> DemoConfig -> write_videos."""
    del arguments
    config = _read_config()
    num_train, num_test = write_videos(Path(config.output_dir), config.seed)
    print(f"{config.output_dir}: {num_train} train and {num_test} test videos.")


def run(argv: list[str]) -> int:
    """Runs the command; returns its exit code."""
    return _COMMAND.run(main, argv)


if __name__ == "__main__":
    command_line.leave(run(sys.argv))
