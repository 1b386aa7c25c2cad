"""Opens a page in the browser's reach to try a trained run on videos, on this machine.

    python tools/serve.py --run_dir=/runs/1

The page is at http://127.0.0.1:8000/. Programs send a video there too, and get what predict.py --json prints:

    curl -F video=@holiday.mp4 http://127.0.0.1:8000/predict
"""

import signal

from absl import flags

import cli
from vidpipe.spec import VidpipeError

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run of tools/train.py.", required=True)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "The address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "The port to listen on.", lower_bound=0)
_MAX_UPLOAD_MB = flags.DEFINE_float("max_upload_mb", 200, "Larger videos are refused.", lower_bound=0.001)
_TIMEOUT_SEC = flags.DEFINE_float(
    "timeout_sec", 60, "A video that takes longer to decode is refused.", lower_bound=0.01
)
_THREADS = flags.DEFINE_integer("threads", 4, "Requests that are worked on at a time.", lower_bound=1)


def main(arguments: list[str]) -> None:
    """Flags -> serve."""
    cli.no_arguments(arguments)
    try:
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise VidpipeError(f"This needs Flask: pip install 'vidpipe[serve]' ({error}).") from None
    cli.load_tensorflow()
    from vidpipe import serve

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that nothing is left behind
    limits = serve.Limits(_MAX_UPLOAD_MB.value, _TIMEOUT_SEC.value, _THREADS.value)
    serve.serve(_RUN_DIR.value, _HOST.value, _PORT.value, limits)


if __name__ == "__main__":
    cli.run(main)
