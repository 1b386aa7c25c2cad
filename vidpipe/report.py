"""Pictures to look at: the only importer of matplotlib."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np

from vidpipe import input_pipeline, shards
from vidpipe.spec import SPLITS

_CLIPS_PER_SPLIT = 6
_FRAMES_PER_CLIP = 8


def contact_sheet(data_dir: str, path: Path) -> None:
    """Writes a PNG of the first clips of each split: a row each, some frames, label and name."""
    info = shards.read_info(data_dir)
    clips = []
    for split in SPLITS:
        if info.num_clips(split) == 0:
            continue
        rows = shards.clip_rows(data_dir, split)[:_CLIPS_PER_SPLIT]
        ((inputs, _, _), *_) = input_pipeline.eval_dataset(data_dir, info, len(rows), split).take(1)
        for row, frames, mask in zip(rows, inputs["frames"].numpy(), inputs["mask"].numpy(), strict=True):
            clips.append((f"{split}: {row['label']}\n{row['video_id']}", frames[mask]))
    size = (1.1 * _FRAMES_PER_CLIP + 3.2, 1.2 * len(clips))
    figure, grid = plt.subplots(len(clips), _FRAMES_PER_CLIP, figsize=size, squeeze=False)
    for axes, (title, frames) in zip(grid, clips, strict=True):
        chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES_PER_CLIP).round().astype(int))
        for axis in axes:
            axis.set_axis_off()
        for axis, index in zip(axes, chosen, strict=False):
            axis.imshow(frames[index])
            axis.set_title(str(index), fontsize=6, pad=1)
        axes[0].text(-0.1, 0.5, title, transform=axes[0].transAxes, ha="right", va="center", fontsize=7)
    figure.subplots_adjust(left=3.1 / size[0], right=0.995, top=0.99, bottom=0.005, wspace=0.03, hspace=0.2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
