"""Datasets at s3:// addresses, on an S3 server on this machine.

Every client is a separate process: tensorflow-io reads the server's address from the environment only once,
and aborts the interpreter at exit, which the tools hide.
"""

import contextlib
import csv
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from synthetic import CONVERSION_FLAGS, committed_bytes
from vidpipe.data import shards
from vidpipe.model import model_file
from vidpipe.training.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
pytestmark = [
    pytest.mark.object_store,
    pytest.mark.skipif(sys.version_info >= (3, 13), reason="tensorflow-io has no release for Python 3.13"),
]


class Bucket:
    """An S3 server with one bucket."""

    def __init__(self) -> None:
        import boto3
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        self.host, self.port = self._server.get_host_and_port()
        keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=f"http://{self.host}:{self.port}", **keys)
        self._client.create_bucket(Bucket="bucket")

    def files(self, prefix: str) -> dict[str, bytes]:
        """Reads the objects directly under `prefix`: name to content."""
        listed = self._client.list_objects_v2(Bucket="bucket", Prefix=f"{prefix}/", Delimiter="/")
        keys = [entry["Key"] for entry in listed.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): self._client.get_object(Bucket="bucket", Key=key)["Body"].read()
            for key in keys
        }

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="bucket", Key=key, Body=content)

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    server = Bucket()
    yield server
    server.stop()


def _environment(port: int) -> dict[str, str]:
    return os.environ | {
        "S3_ENDPOINT": f"http://127.0.0.1:{port}", "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
    }  # fmt: skip


def _run(port: int, tool: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    return subprocess.run(command, env=_environment(port), capture_output=True, text=True, timeout=300)


def test_conversion_to_s3_and_repair(bucket: Bucket, video_dir: Path, data_dir: str) -> None:
    address = "s3://bucket/records"
    local = committed_bytes(Path(data_dir))
    convert = ("convert_videos.py", f"--video_dir={video_dir}", f"--output_dir={address}", *CONVERSION_FLAGS)

    first = _run(bucket.port, *convert)
    assert first.returncode == 0, first.stderr
    assert first.stdout == f"{address}: 16 clips, 0 videos skipped; 5 shards written, 0 kept.\n"
    assert bucket.files("records") == local

    shard = "train-00001-of-00002.tfrecord"
    bucket.put(f"records/{shard}", local[shard][:-1] + b"x")
    corrupt = _run(bucket.port, "inspect_shards.py", f"--data_dir={address}", "--verify")
    assert corrupt.returncode == 1
    assert f"{shard}: its sha256 differs from the one in dataset_info.json" in corrupt.stdout

    again = _run(bucket.port, *convert)
    assert again.returncode == 0, again.stderr
    assert "1 shards written, 4 kept" in again.stdout
    assert bucket.files("records") == local

    repaired = _run(bucket.port, "inspect_shards.py", f"--data_dir={address}", "--verify")
    assert repaired.returncode == 0, repaired.stderr
    assert "Verified: no problems found." in repaired.stdout


def test_a_killed_conversion_resumes_to_the_same_bytes(
    bucket: Bucket, video_dir: Path, data_dir: str, conversion: Callable[..., object]
) -> None:
    address = "s3://bucket/killed"
    script = f"""
from synthetic import slow_read
from vidpipe.data import convert
from vidpipe.config import ClipConfig, ConversionConfig, ManifestConfig
convert.convert({conversion(address)!r}, read=slow_read)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env=_environment(bucket.port),
        stderr=subprocess.DEVNULL,
        cwd=ROOT / "tests",
        start_new_session=True,
    )
    while sum(name.endswith(".tfrecord") for name in bucket.files("killed")) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert shards.INFO_NAME not in bucket.files("killed")
    resumed = _run(
        bucket.port,
        "convert_videos.py",
        f"--video_dir={video_dir}",
        f"--output_dir={address}",
        *CONVERSION_FLAGS,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert ", 0 kept" not in resumed.stdout
    assert bucket.files("killed") == committed_bytes(Path(data_dir))


class CuttingProxy:
    """Forwards connections to a port; closes a connection after each of the given total numbers of bytes.

    The bytes of the requests are counted, or with `responses` those of the responses.
    """

    def __init__(self, port: int, *, cut_after: list[int], responses: bool = False) -> None:
        self._target, self._cut_after, self._responses = port, cut_after, responses
        self.sent = self.cuts = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            server = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(
                target=self._forward, args=(client, server, not self._responses), daemon=True
            ).start()
            threading.Thread(
                target=self._forward, args=(server, client, self._responses), daemon=True
            ).start()

    def _forward(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while block := source.recv(512):
                self.sent += len(block) * counted
                if counted and self._cut_after and self.sent > self._cut_after[0]:
                    self._cut_after.pop(0)
                    self.cuts += 1
                    break
                target.sendall(block)
        except OSError:
            pass
        for side in (source, target):
            # The other side does not notice close() while another thread waits in recv().
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()


def test_an_upload_is_retried_when_its_connection_is_closed(
    bucket: Bucket, video_dir: Path, data_dir: str
) -> None:
    proxy = CuttingProxy(bucket.port, cut_after=[8_000, 25_000, 45_000])
    ended = _run(
        proxy.port,
        "convert_videos.py",
        f"--video_dir={video_dir}",
        "--output_dir=s3://bucket/cut",
        *CONVERSION_FLAGS,
    )
    assert ended.returncode == 0, ended.stderr
    assert proxy.cuts == 3
    assert bucket.files("cut") == committed_bytes(Path(data_dir))


TRAIN = ("--backbone_weights=none", "--epochs=2", "--batch_size=3", "--ensemble_size=1")


@pytest.fixture(scope="module")
def records(bucket: Bucket, data_dir: str) -> str:
    """The dataset of `data_dir` in the bucket."""
    for name, content in committed_bytes(Path(data_dir)).items():
        bucket.put(f"dataset/{name}", content)
    return "s3://bucket/dataset"


@pytest.fixture(scope="module", params=["on", "off"])
def from_disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data_dir: str
) -> Path:
    """A run with the flags `TRAIN` on local files, with or without cached features."""
    run_dir = tmp_path_factory.mktemp("from_disk") / request.param
    cache_features = f"--cache_features={request.param}"
    ended = _run(0, "train.py", f"--data_dir={data_dir}", f"--run_dir={run_dir}", cache_features, *TRAIN)
    assert ended.returncode == 0, ended.stderr
    return run_dir


def _assert_same_run(first: Path, second: Path) -> None:
    """Losses and weights are bit-identical."""
    for column in ("loss", "val_loss"):
        losses = [
            [row[column] for row in csv.DictReader((run_dir / "history.csv").open())]
            for run_dir in (first, second)
        ]
        assert losses[0] == losses[1]
    weights = [model_file.load_model(run_dir / "model.keras")[0].get_weights() for run_dir in (first, second)]
    assert all((a == b).all() for a, b in zip(*weights, strict=True))


def test_training_and_evaluation_are_the_same_on_s3_and_on_disk(
    bucket: Bucket, records: str, data_dir: str, from_disk: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    train = ("train.py", f"--data_dir={records}", f"--run_dir={run_dir}", *TRAIN)
    ended = _run(bucket.port, *train, f"--cache_features={from_disk.name}")
    assert ended.returncode == 0, ended.stderr
    _assert_same_run(run_dir, from_disk)
    assert (run_dir / "features").exists() == (from_disk.name == "on")
    assert set(bucket.files("dataset")) == set(committed_bytes(Path(data_dir)))

    for source, run in ((records, run_dir), (data_dir, from_disk)):
        ended = _run(bucket.port, "evaluate.py", f"--data_dir={source}", f"--run_dir={run}")
        assert ended.returncode == 0, ended.stderr
    ours, theirs = (RunFolder(folder).evaluation("test") for folder in (run_dir, from_disk))
    assert ours.predictions.read_bytes() == theirs.predictions.read_bytes()
    # model.keras holds the time at which it was saved.
    metrics, expected = ({**each.read_metrics(), "sha256": None} for each in (ours, theirs))
    assert metrics == expected


def test_the_contact_sheet_is_the_same_on_s3_and_on_disk(
    bucket: Bucket, records: str, data_dir: str, tmp_path: Path
) -> None:
    for name, source in (("s3", records), ("disk", data_dir)):
        sheet = f"--contact_sheet={tmp_path}/{name}.png"
        ended = _run(bucket.port, "inspect_shards.py", f"--data_dir={source}", "--verify", sheet)
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "s3.png").read_bytes() == (tmp_path / "disk.png").read_bytes()


@pytest.mark.parametrize("from_disk", ["off"], indirect=True)
def test_training_retries_closed_connections_and_resumes_when_the_server_is_back(
    bucket: Bucket, records: str, from_disk: Path, tmp_path: Path
) -> None:
    """If the server stops answering, one line is printed, and the incomplete epoch is not counted."""
    # The responses of the run have about 50 kB.
    cut_after = [5_000, 15_000, 20_000, 25_000, 30_000, 35_000]
    proxy = CuttingProxy(bucket.port, cut_after=cut_after, responses=True)
    train = ("train.py", f"--data_dir={records}", "--cache_features=off", *TRAIN)
    ended = _run(proxy.port, *train, f"--run_dir={tmp_path}/cut")
    assert ended.returncode == 0, ended.stderr
    assert proxy.cuts == 6
    _assert_same_run(tmp_path / "cut", from_disk)

    down = CuttingProxy(bucket.port, cut_after=[proxy.sent * 3 // 4] * 10_000, responses=True)
    ended = _run(down.port, *train, f"--run_dir={tmp_path}/down")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"train.py: {records} can no longer be read (")
    assert "run the same command; training resumes from its last checkpoint." in last
    assert not (tmp_path / "down" / "metrics.json").exists()

    ended = _run(bucket.port, *train, f"--run_dir={tmp_path}/down")
    assert ended.returncode == 0, ended.stderr
    assert "Resuming from epoch 2" in ended.stderr
    _assert_same_run(tmp_path / "down", from_disk)


@pytest.mark.parametrize("from_disk", ["off"], indirect=True)
def test_two_processes_share_local_copies_that_are_read_without_the_server(
    bucket: Bucket, records: str, from_disk: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, str(ROOT / "tools" / "train.py"), f"--data_dir={records}", "--cache_features=off",
        f"--cache_dir={tmp_path}/cache", *TRAIN,
    ]  # fmt: skip
    runs = [tmp_path / "first", tmp_path / "second"]
    processes = [
        subprocess.Popen(
            [*command, f"--run_dir={run}"], env=_environment(bucket.port), stderr=subprocess.PIPE
        )
        for run in runs
    ]
    for process, run in zip(processes, runs, strict=True):
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        _assert_same_run(run, from_disk)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RejectingServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    third = (*command[2:], f"--run_dir={tmp_path}/third")
    ended = _run(server.server_port, "train.py", *third)
    server.shutdown()
    assert ended.returncode == 0, ended.stderr
    assert "Reading the local copies in" in ended.stderr
    _assert_same_run(tmp_path / "third", from_disk)


class RejectingServer(http.server.BaseHTTPRequestHandler):
    """Answers like S3 to a wrong key."""

    def _reject(self) -> None:
        body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>wrong secret</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _reject  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


def test_wrong_credentials_are_reported_in_one_line(video_dir: Path, tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), RejectingServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = "s3://bucket/rejected"
    ended = _run(
        server.server_port, "convert_videos.py", f"--video_dir={video_dir}", f"--output_dir={address}"
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"convert_videos.py: Cannot write to {address}: SignatureDoesNotMatch: wrong secret."
    )
    assert ended.stderr.count("\n") == 1
    ended = _run(server.server_port, "inspect_shards.py", f"--data_dir={address}")
    assert ended.returncode == 1
    assert ended.stderr == (
        f"inspect_shards.py: There is no folder {address}, or credentials or endpoint are wrong.\n"
    )
    ended = _run(server.server_port, "train.py", f"--data_dir={address}", f"--run_dir={tmp_path}/run", *TRAIN)
    assert ended.returncode == 1
    assert ended.stderr == (
        f"train.py: There is no folder {address}, or credentials or endpoint are wrong.\n"
    )
    assert not (tmp_path / "run").exists()
    server.shutdown()
