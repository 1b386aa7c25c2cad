"""Other ways to read videos, which vidpipe is compared with: OpenCV's bare calls, PyAV, decord, the notebook.

Each reads a clip that vidpipe has read already: it is given the frame indices and the frame size.
"""

import importlib
import logging
from collections.abc import Callable

import cv2
import numpy as np

from vidpipe.config import ConversionConfig
from vidpipe.data.video import VideoClip

# A path and vidpipe's clip of that video -> the same frames, uint8 [n, H, W, 3], or nothing.
ReadSameClip = Callable[[str, VideoClip], object]

_log = logging.getLogger(__name__)


def installed_version(name: str, module: str) -> str | None:
    """Returns a library's name and version; None, after a notice, where it is not installed."""
    try:
        return f"{name} {importlib.import_module(module).__version__}"
    except ImportError:
        _log.warning(
            "%s is not installed: its rows are left out. Install it with: pip install '.[benchmark]'", name
        )
        return None


def installed_readers() -> dict[str, ReadSameClip]:
    """Returns the readers of PyAV and decord, by name and version, where they are installed."""
    readers = (
        (installed_version("PyAV", "av"), read_with_pyav),
        (installed_version("decord", "decord"), read_with_decord),
    )
    return {name: read for name, read in readers if name is not None}


def grab_and_encode(path: str, clip: VideoClip) -> None:
    """Grabs the frames up to the last one of the clip, and encodes the clip's frames: the least work."""
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    for _ in range(int(clip.frame_indices[-1]) + 1):
        capture.grab()
    capture.release()
    # Red and blue are exchanged, which changes neither time nor size; converting them would add work.
    for frame in clip.frames:
        cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, ConversionConfig.jpeg_quality])


def read_with_opencv(path: str, clip: VideoClip) -> np.ndarray:
    """Reads the clip with OpenCV: grabs the frames up to its last one, and retrieves the wanted ones."""
    frames = np.empty_like(clip.frames)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    image, grabbed = None, -1
    for index, frame in zip(clip.frame_indices.tolist(), frames, strict=True):
        while grabbed < index:
            capture.grab()
            grabbed += 1
        _, image = capture.retrieve(image)
        _write_centre_square(image, frame)
    capture.release()
    return frames


def decode_everything(path: str, _clip: VideoClip) -> None:
    """Decodes every frame with PyAV, and does nothing with it."""
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        for _ in container.decode(stream):
            pass


def read_with_pyav(path: str, clip: VideoClip) -> np.ndarray:
    """Reads the clip with PyAV, see `decode_with_pyav`."""
    frames = np.empty_like(clip.frames)
    decode_with_pyav(path, clip.frame_indices, frames)
    return frames


def decode_with_pyav(path: str, frame_indices: np.ndarray, frames: np.ndarray) -> None:
    """Decodes in order up to the last wanted frame, and converts only the wanted frames.

    Args:
      path: a video.
      frame_indices: int64 [n], ascending.
      frames: uint8 [>= n, H, W, 3], RGB; the first n are written.
    """
    import av
    from av.video.reformatter import VideoReformatter

    # The fastest way found. One reformatter on one thread: to_ndarray(format="rgb24") with its defaults takes
    # a third more time. One array for the clip: a list and np.stack take as much again.
    reformatter = VideoReformatter()
    wanted, count = set(frame_indices.tolist()), 0
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "NONE", 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                _write_centre_square(image, frames[count])
                count += 1
                if count == len(wanted):
                    break


def read_with_decord(path: str, clip: VideoClip) -> np.ndarray:
    """Reads the clip with decord, which is asked for all frames at once and decodes them in order."""
    import decord

    images = decord.VideoReader(path, num_threads=1).get_batch(clip.frame_indices).asnumpy()
    frames = np.empty_like(clip.frames)
    for image, frame in zip(images, frames, strict=True):
        _write_centre_square(image, frame)
    return frames


def read_as_notebook(path: str, clip: VideoClip) -> np.ndarray:
    """Reads the clip as the notebook does, see `load_all_frames`."""
    num_frames, image_size = clip.frames.shape[:2]
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    return load_all_frames(capture, image_size)[:num_frames]


def load_all_frames(capture: cv2.VideoCapture, image_size: int) -> np.ndarray:
    """Loads every frame of a video, as the Keras CNN-RNN example does before it keeps the first T.

    Args:
      capture: an opened video; released here.
      image_size: side of the frames, pixels.

    Returns:
      uint8 [video_num_frames, image_size, image_size, 3], RGB.
    """
    frames = []
    while True:
        readable, frame = capture.read()
        if not readable:
            break
        square = cv2.resize(_centre_square(frame), (image_size, image_size))
        frames.append(square[:, :, [2, 1, 0]])
    capture.release()
    return np.array(frames)


def _write_centre_square(image: np.ndarray, frame: np.ndarray) -> None:
    """Writes the centre square of `image` into `frame`, resized as vidpipe does it."""
    square = _centre_square(image)
    interpolation = cv2.INTER_AREA if len(square) >= 2 * len(frame) else cv2.INTER_LINEAR
    cv2.resize(square, frame.shape[:2], dst=frame, interpolation=interpolation)


def _centre_square(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]
