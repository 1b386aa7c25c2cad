"""The HTTP interface for trying a model: a page, and POST /predict for programs. The only importer of Flask.

Uploads are untrusted. Nothing of a request becomes a path, and a response holds nothing of a request but the
model's output.
"""

import base64
import dataclasses
import html
import ipaddress
import re
import tempfile
import threading
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import flask
from werkzeug.exceptions import HTTPException

from vidpipe.config import ServerConfig
from vidpipe.data.process_pool import ReaderPool
from vidpipe.data.video_tree import VIDEO_SUFFIXES
from vidpipe.display import page
from vidpipe.inference import predict

MALFORMED = "The request is malformed."
_MESSAGES = {
    404: "Not found. GET / returns the page; POST /predict takes a video.",
    405: "Method not allowed. POST /predict takes a video; every other address takes GET only.",
    500: "Internal error. The log of the server has the details.",
}
_FORM_BYTES = 2**16  # what a form and its headers may add to the video
_CHUNK_BYTES = 2**20


class RequestError(Exception):
    """A request that is answered by a status code and {"error": MESSAGE}."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass(frozen=True)
class Predictor:
    """Predicts uploaded videos for several threads.

    Attributes:
      classifier: the model; one thread at a time uses it.
      pool: decodes the uploads.
      read: what a process of the pool calls for an upload; importable by name.
    """

    classifier: predict.Classifier
    pool: ReaderPool
    read: predict.ReadClip
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, path: str, *, with_frames: bool) -> dict[str, Any]:
        """Returns the JSON answer for a video.

        Raises:
          RequestError: the video cannot be read.
        """
        metadata = self.classifier.metadata
        result = self.pool.read(self.read, path, metadata.clip)
        if result.value is None:
            assert result.failure is not None
            raise RequestError(422, f"The file cannot be read as a video: {result.failure.message}.")
        frames = predict.model_frames(result.value.frames, metadata)
        with self._lock:
            scores = predict.classify(self.classifier, [frames], batch_size=1)[0]
        probabilities = predict.rank(scores, metadata.classes)
        answer: dict[str, Any] = {
            "predicted": next(iter(probabilities)),
            "probabilities": probabilities,
            "num_frames": len(frames),
        }
        if with_frames:
            strip = page.strip(frames)
            answer["frames"] = dataclasses.asdict(strip) | {"jpeg": base64.b64encode(strip.jpeg).decode()}
        return answer


def make_app(predictor: Predictor, config: ServerConfig, *, name: str) -> flask.Flask:
    """Builds the app: GET / is the page, POST /predict is for programs, GET /healthz for monitors.

    POST /predict takes a video as its body, or in the field `video` of a form. It answers like a line of
    `predict.py --json`, with `num_frames`, the number of frames that the model saw, instead of the path;
    `?frames=1` adds these frames as `page.strip` makes them. A rejected request gets {"error": MESSAGE} and
    status 400, 403, 404, 405, 413 or 422.

    Args:
      predictor: the model and its decoding processes.
      config: the upload limit; and on a loopback `host`, requests to other host names are rejected, such as
        those of a foreign page whose own name was made to resolve to this machine (DNS rebinding).
      name: of the model, for the page.
    """
    app = flask.Flask(__name__, static_folder=None, template_folder=None)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.config["MAX_CONTENT_LENGTH"] = max_upload_bytes(config) + _FORM_BYTES
    index_page = _render_page(predictor, config, name)

    @app.get("/")
    def show_page() -> str:
        return index_page

    @app.get("/healthz")
    def report_health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/predict")
    def predict_upload() -> dict[str, Any]:
        with tempfile.NamedTemporaryFile(prefix="vidpipe-upload-") as file:
            _store(_upload(flask.request), file, config)
            return predictor.predict(file.name, with_frames=flask.request.args.get("frames") == "1")

    _check_callers(app, local_only=is_local(config.host))
    _set_headers(app, index_page)
    _answer_errors_in_json(app, config)
    return app


def max_upload_bytes(config: ServerConfig) -> int:
    """Returns the largest accepted size of a video."""
    return int(config.max_upload_mb * 2**20)


def is_local(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _render_page(predictor: Predictor, config: ServerConfig, name: str) -> str:
    metadata = predictor.classifier.metadata
    return page.render(
        "serve.html.j2",
        name=name,
        classes=metadata.classes,
        num_frames=metadata.spec.num_frames,
        max_upload_mb=config.max_upload_mb,
        max_upload_bytes=max_upload_bytes(config),
        too_large=_too_large(config),
        suffixes=sorted(VIDEO_SUFFIXES),
    )


def _check_callers(app: flask.Flask, *, local_only: bool) -> None:
    """Rejects requests to foreign host names, and posts from pages of other origins."""

    @app.before_request
    def check_caller() -> None:
        host = flask.request.headers.get("Host", "").lower()
        if local_only and not is_local(_host_name(host)):
            raise RequestError(
                403, "This server accepts local host names only, such as 127.0.0.1 and localhost."
            )
        origin = flask.request.headers.get("Origin", f"http://{host}").lower()
        if flask.request.method == "POST" and origin.partition("://")[2] != host:
            raise RequestError(403, "This server accepts no videos from pages of other origins.")


def _set_headers(app: flask.Flask, index_page: str) -> None:
    headers = {
        "Content-Security-Policy": f"{_policy(index_page)}; frame-ancestors 'none'; form-action 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }

    @app.after_request
    def set_headers(response: flask.Response) -> flask.Response:
        response.headers.update(headers)
        return response


def _answer_errors_in_json(app: flask.Flask, config: ServerConfig) -> None:
    @app.errorhandler(RequestError)
    def answer_request_error(error: RequestError) -> tuple[dict[str, str], int]:
        return {"error": error.message}, error.code

    @app.errorhandler(HTTPException)
    def answer_http_error(error: HTTPException) -> tuple[dict[str, str], int]:
        code = error.code or 500
        return {"error": _too_large(config) if code == 413 else _MESSAGES.get(code, MALFORMED)}, code


def _too_large(config: ServerConfig) -> str:
    return f"The video is larger than the limit of {config.max_upload_mb:g} MiB."


def _upload(request: flask.Request) -> BinaryIO:
    if request.mimetype != "multipart/form-data":
        return request.stream  # type: ignore[return-value]
    if "video" not in request.files:
        raise RequestError(400, "The form has no file in a field named video.")
    return request.files["video"].stream  # type: ignore[return-value]


def _store(upload: BinaryIO, file: Any, config: ServerConfig) -> None:
    size = 0
    while chunk := upload.read(_CHUNK_BYTES):
        size += len(chunk)
        if size > max_upload_bytes(config):
            raise RequestError(413, _too_large(config))
        file.write(chunk)
    if size == 0:
        raise RequestError(400, "The upload is empty: send a video.")
    file.flush()


def _policy(rendered: str) -> str:
    """Finds the content security policy in a page, for the header, which alone can forbid framing."""
    found = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', rendered)
    assert found is not None
    return html.unescape(found.group(1))


def _host_name(host: str) -> str:
    """Returns the name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
