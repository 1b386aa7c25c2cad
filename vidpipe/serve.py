"""A page on this machine to try a model: a video goes up, ranked classes come back. The door of Flask.

An upload is kept under a name of our own, opened in a worker process, and deleted. Nothing of a request
becomes a path, and nothing of it comes back but what the model says.
"""

import base64
import dataclasses
import html
import ipaddress
import json
import logging
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import flask
import numpy as np
import waitress
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer
from waitress.task import ErrorTask
from werkzeug.exceptions import HTTPException

from vidpipe import page, predict, video, worker
from vidpipe.config import ConversionConfig
from vidpipe.manifest import VIDEO_SUFFIXES
from vidpipe.spec import VidpipeError

# Of a worker. The clip crosses into this process, so it is less than the converter's.
_WORKER_MEMORY_MB = 1024
# What a form and its headers may take beside the video, bytes.
_FORM_BYTES = 2**16
_CHUNK_BYTES = 2**20
_SENTENCES = {
    400: "This request cannot be understood.",
    404: "There is nothing here. The page is at /, and POST /predict takes a video.",
    405: "POST /predict takes a video; everything else is asked for with GET.",
    500: "Something went wrong here; the terminal of the server says what.",
}
_log = logging.getLogger(__name__)


class ServeError(VidpipeError):
    """The server cannot start."""


@dataclass(frozen=True)
class Limits:
    """What requests may take.

    Attributes:
      max_upload_mb: size of a video, in 2**20 bytes.
      timeout_sec: a video that takes longer to decode is refused.
      threads: requests that are worked on at a time. Each may decode; one at a time asks the model.
    """

    max_upload_mb: float = 200
    timeout_sec: float = ConversionConfig.timeout_sec
    threads: int = 4

    @property
    def max_bytes(self) -> int:
        """Of a video."""
        return int(self.max_upload_mb * 2**20)

    @property
    def too_large(self) -> str:
        """What is said of a larger one."""
        return f"The video is larger than the {self.max_upload_mb:g} MB that are taken here."


class _RefusedError(Exception):
    """A request that gets a sentence and no answer."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence


def serve(run_dir: str, host: str, port: int, limits: Limits) -> None:
    """Serves a run's model until KeyboardInterrupt, which is raised.

    Raises:
      ModelError: the run has no readable model.
      ServeError: the address cannot be had.
    """
    with open_server(run_dir, host, port, limits) as server:
        if not _is_local(host):
            _log.warning("Whoever reaches %s may send videos, unencrypted and without a password.", host)
        name = f"[{host}]" if ":" in host else host
        _log.info("%s is at http://%s:%s/ until Ctrl-C.", run_dir, name, server.effective_port)
        server.run()
        raise KeyboardInterrupt  # which waitress ended by, and kept to itself


@contextmanager
def open_server(
    run_dir: str, host: str, port: int, limits: Limits, read: predict.ReadClip = video.read_lone_clip
) -> Iterator[BaseWSGIServer]:
    """A server that listens; `run()` answers. Arguments and errors are those of `serve` and `make_app`."""
    try:
        listener = socket.create_server((host, port), family=_family(host))
    except (OSError, OverflowError) as error:
        reason = str(getattr(error, "strerror", None) or error).partition(" (while")[0]
        raise ServeError(
            f"Cannot listen on port {port} of {host} ({reason}). Give another --port or --host."
        ) from None
    with listener, worker.Workers(limits.threads, limits.timeout_sec, _WORKER_MEMORY_MB) as workers:
        classifier = predict.load_classifier(run_dir)  # while the workers start
        spec = classifier.card.spec
        # Now, so that the first request need not wait for what TensorFlow prepares.
        predict.classify(classifier, [np.zeros((1, spec.height, spec.width, 3), np.uint8)], batch_size=1)
        app = make_app(Path(run_dir).name, classifier, workers, limits, _is_local(host), read)
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # that a request waits is as it should be
        server = waitress.create_server(
            app,
            sockets=[listener],
            threads=limits.threads,
            connection_limit=8 * limits.threads,
            # Those a little larger get this far, and the app's answer; a client that sends on gets none.
            max_request_body_size=limits.max_bytes + _CHUNK_BYTES,
            ident=None,
        )
        server.channel_class = _Channel
        try:
            yield server
        finally:
            server.close()


def make_app(
    name: str,
    classifier: predict.Classifier,
    workers: worker.Workers,
    limits: Limits,
    local_only: bool,
    read: predict.ReadClip = video.read_lone_clip,
) -> flask.Flask:
    """The pages: GET / to try the model by hand, POST /predict for programs, GET /healthz.

    POST /predict takes a video as its body, or in the field `video` of a form. It answers like a line of
    `predict.py --json`, with `num_frames`, the frames that the model saw, in place of the path; with
    `?frames=1` they come too, as `page.strip` makes them. What is refused gets `{"error": SENTENCE}` and
    status 400, 403, 404, 405, 413 or 422.

    Args:
      name: of the model, for the page.
      classifier: the model.
      workers: decode the uploads.
      limits: of a request.
      local_only: refuse requests to other names than this machine has for itself, such as those of a page
        whose own name was made to point here.
      read: what a worker calls for an upload; importable by name.
    """
    app = flask.Flask(__name__, static_folder=None, template_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = limits.max_bytes + _FORM_BYTES
    index_page = page.render(
        "serve.html.j2",
        name=name,
        classes=classifier.card.classes,
        num_frames=classifier.card.spec.num_frames,
        limits=limits,
        suffixes=sorted(VIDEO_SUFFIXES),
    )
    headers = {
        "Content-Security-Policy": f"{_policy(index_page)}; frame-ancestors 'none'; form-action 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
    model_lock = threading.Lock()

    @app.before_request
    def refuse_strangers() -> None:
        host = flask.request.headers.get("Host", "").lower()
        if local_only and not _is_local(_hostname(host)):
            raise _RefusedError(403, "This server answers only to names such as 127.0.0.1 and localhost.")
        origin = flask.request.headers.get("Origin", f"http://{host}").lower()
        if flask.request.method == "POST" and origin.partition("://")[2] != host:
            raise _RefusedError(403, "This server takes no videos from the pages of others.")

    @app.after_request
    def protect(response: flask.Response) -> flask.Response:
        response.headers.update(headers)
        return response

    @app.errorhandler(_RefusedError)
    def refuse(error: _RefusedError) -> tuple[dict[str, str], int]:
        return {"error": error.sentence}, error.code

    @app.errorhandler(HTTPException)
    def refuse_generally(error: HTTPException) -> tuple[dict[str, str], int]:
        code = error.code or 500
        return {"error": limits.too_large if code == 413 else _SENTENCES.get(code, _SENTENCES[400])}, code

    @app.get("/")
    def show() -> str:
        return index_page

    @app.get("/healthz")
    def answer() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    def classify() -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(prefix="vidpipe-upload-") as file:
            _keep(_upload(flask.request), file, limits)
            outcome = workers.read(read, file.name, classifier.card.clip)
        if outcome.value is None:
            raise _RefusedError(422, f"This file cannot be read as a video ({outcome.reason}).")
        seen = predict.seen_frames(outcome.value.frames, classifier.card)
        with model_lock:
            scores = predict.classify(classifier, [seen], batch_size=1)[0]
        probabilities = predict.ranked(scores, classifier.card.classes)
        found = {
            "predicted": next(iter(probabilities)),
            "probabilities": probabilities,
            "num_frames": len(seen),
        }
        if flask.request.args.get("frames") == "1":
            found["frames"] = _as_json(page.strip(seen))
        return found

    app.json.sort_keys = False  # type: ignore[attr-defined]
    return app


class _ErrorTask(ErrorTask):
    """What waitress refuses by itself, in our words."""

    def execute(self) -> None:
        status = HTTPStatus(self.request.error.code)
        sentence = _SENTENCES[400]
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            sentence = "The video is larger than what is taken here."
        body = json.dumps({"error": sentence}).encode()
        self.status = f"{status.value} {status.phrase}"
        self.response_headers.append(("Content-Type", "application/json"))
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Channel(HTTPChannel):
    error_task_class = _ErrorTask


def _upload(request: flask.Request) -> BinaryIO:
    if request.mimetype != "multipart/form-data":
        return request.stream  # type: ignore[return-value]
    if "video" not in request.files:
        raise _RefusedError(400, "The form has no file in a field named video.")
    return request.files["video"].stream  # type: ignore[return-value]


def _keep(upload: BinaryIO, file: Any, limits: Limits) -> None:
    size = 0
    while chunk := upload.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > limits.max_bytes:
            raise _RefusedError(413, limits.too_large)
        file.write(chunk)
    if size == 0:
        raise _RefusedError(400, "There is no video: the upload is empty.")
    file.flush()


def _as_json(strip: page.Strip) -> dict[str, Any]:
    return dataclasses.asdict(strip) | {"jpeg": base64.b64encode(strip.jpeg).decode()}


def _policy(rendered: str) -> str:
    """A page's own content security policy, which is of more use in a header."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', rendered)
    assert found is not None
    return html.unescape(found.group(1))


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _hostname(host: str) -> str:
    """The name in a Host header, which may have a port behind it."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_local(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
