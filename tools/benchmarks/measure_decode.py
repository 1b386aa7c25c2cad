"""Reading videos, in one process: CPU time per clip.

read and encode, SAMPLING
    against OpenCV's bare calls: grabbing the frames up to the last one of the clip, and encoding its frames
read, SAMPLING
    against PyAV and decord, which are given the frame indices and run on one thread
read, head
    against the notebook's loader, which decodes, crops and resizes every frame and keeps the first T

A round reads each video 21 times. A hundred videos are enough.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from measurement import Rounds, Row, Workload, cpu_ms, make_row
from references import ReadSameClip, grab_and_encode, installed_readers, read_as_notebook
from vidpipe.config import ClipConfig, ConversionConfig
from vidpipe.data import video

_ReadClip = Callable[[str, ClipConfig], object]


def measure(workload: Workload) -> Iterator[Row]:
    """Measures two samplings against the bare calls and the installed libraries, one against the notebook."""
    uniform, head = ClipConfig(sampling="uniform"), ClipConfig(sampling="head")
    readers = installed_readers()

    def row(what: str, reference: str, clip: ClipConfig, read: _ReadClip, read_same: ReadSameClip) -> Row:
        rounds = _compare(workload.paths, clip, read, read_same, workload.repeats)
        return make_row(what, unit="CPU ms/clip", reference=reference, rounds=rounds)

    for clip in (uniform, head):
        what = f"read and encode, {clip.sampling}"
        yield row(what, "bare grab and encode", clip, _read_and_encode, grab_and_encode)
    for clip in (uniform, head):
        for name, read_same in readers.items():
            yield row(f"read, {clip.sampling}", name, clip, video.read_clip, read_same)
    yield row("read, head", "notebook's loader", head, video.read_clip, read_as_notebook)


def _read_and_encode(path: str, clip: ClipConfig) -> object:
    return video.read_encoded_clip(path, clip, "jpeg", ConversionConfig.jpeg_quality)


def _compare(
    paths: Sequence[str], clip: ClipConfig, read: _ReadClip, read_same: ReadSameClip, repeats: int
) -> Rounds:
    """Reads each video both ways in turn, so that a machine that slows down slows both; ms per clip."""
    rounds = []
    for repeat in range(repeats):
        spent = [0.0, 0.0]
        for number, path in enumerate(paths):
            sides = partial(read, path, clip), partial(read_same, path, video.read_clip(path, clip))
            # The second finds the file and the decoder's code in the caches.
            for side in (0, 1) if (number + repeat) % 2 else (1, 0):
                spent[side] += cpu_ms(sides[side])
        rounds.append((spent[0] / len(paths), spent[1] / len(paths)))
    return rounds
