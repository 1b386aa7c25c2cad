"""What every tool shares: how it starts, how it fails, and with which exit code."""

import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

# Before TensorFlow is loaded: its start-up notices and its C++ log are not about the user's job.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from vidpipe.config import RESIZE, ClipConfig
from vidpipe.spec import VidpipeError


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main` with absl's flags and leaves with 0 done, 1 failed, 2 wrong usage, 128 + n for signal n.

    A VidpipeError is the user's to mend: one line on stderr, no traceback. So is what the system refuses.
    """

    def guarded(arguments: list[str]) -> None:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
        logging.getLogger("matplotlib").setLevel(logging.WARNING)  # it tells of its fonts at its first start
        try:
            code = main(arguments[1:]) or 0
            sys.stdout.flush()
        except VidpipeError as error:
            print(f"{_tool_name()}: {error}", file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            print(f"{_tool_name()}: interrupted", file=sys.stderr)
            code = 130
        except BrokenPipeError:  # whoever reads has seen enough, as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 141
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            print(f"{_tool_name()}: {error.strerror or error}{where}", file=sys.stderr)
            code = 1
        _leave(code)

    app.run(guarded, flags_parser=_parse)


def _leave(code: int) -> NoReturn:
    if "tensorflow_io" in sys.modules:
        # Its S3 client aborts the interpreter on the way out, with exit code 134 (tensorflow/io issue 1912).
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def load_tensorflow() -> None:
    """Imports TensorFlow, once the flags are known to be right: it takes seconds.

    From 2.21 on its C++ side writes notices to stderr before its log can be told to be quiet; what it writes
    during the import is dropped. An import that fails still raises.
    """
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        import tensorflow

        tensorflow.get_logger().setLevel(logging.ERROR)  # tf.distribute tells of every collective it traces
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def no_arguments(arguments: list[str]) -> None:
    """Ends with 2 where the command line has words that are no flags."""
    if arguments:
        usage_error(f"unexpected arguments: {' '.join(arguments)}")


def usage_error(message: str) -> NoReturn:
    """Ends with 2 and one line."""
    print(f"{_tool_name()}: {message}. --help lists the flags.", file=sys.stderr)
    sys.exit(2)


def define_clip_flags() -> Callable[[], ClipConfig]:
    """The flags that say how a video becomes a clip; returns what reads them."""
    num_frames = flags.DEFINE_integer("num_frames", ClipConfig.num_frames, "Frames per clip (T).")
    sampling = flags.DEFINE_enum(
        "sampling",
        ClipConfig.sampling,
        ["uniform", "interval", "head"],
        "uniform: the middle of T equal segments; interval: every frame_stride-th; head: the first T.",
    )
    frame_stride = flags.DEFINE_integer(
        "frame_stride", None, "With --sampling=interval; left out, T frames are spread over the video."
    )
    image_size = flags.DEFINE_integer("image_size", ClipConfig.image_size, "Side of the frames, pixels.")
    resize = flags.DEFINE_enum(
        "resize",
        ClipConfig.resize,
        RESIZE,
        "crop: store the centre square; short_side: store the whole frame, its short side image_size pixels.",
    )
    return lambda: ClipConfig(
        num_frames.value, sampling.value, frame_stride.value, image_size.value, resize.value
    )


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        usage_error(str(error).rstrip("."))
    except SystemExit:  # after --help, with absl's 1
        sys.exit(0)


def _tool_name() -> str:
    return os.path.basename(sys.argv[0])  # noqa: PTH119
