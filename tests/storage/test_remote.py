"""Addresses of remote file systems; ram:// is TensorFlow's file system in memory."""

import sys
from pathlib import Path

import pytest
import tensorflow as tf

from vidpipe.data import shards
from vidpipe.storage import remote


@pytest.mark.parametrize(
    ("address", "expected"), [("s3://bucket/a", True), ("/a/b", False), (Path("a"), False), ("a:b", False)]
)
def test_is_remote(address: remote.Address, expected: bool) -> None:
    assert remote.is_remote(address) == expected


def test_a_local_path_and_a_known_scheme_need_no_other_package(tmp_path: Path) -> None:
    remote.connect(tmp_path)
    remote.connect("ram://folder")
    assert "tensorflow_io" not in sys.modules


def test_a_scheme_that_no_package_supports_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_io", None)  # importing it fails, as if it were not installed
    with pytest.raises(remote.RemoteError, match="cannot reach ftp:// addresses.*pip install 'vidpipe.io.'"):
        shards.read_info("ftp://host/records")


def test_an_upload_that_ends_early_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"content")

    def copy_a_part(path: object, address: str, overwrite: bool) -> None:
        with tf.io.gfile.GFile(address, "wb") as file:
            file.write(b"con")

    monkeypatch.setattr(tf.io.gfile, "copy", copy_a_part)
    with pytest.raises(tf.errors.DataLossError, match="has 3 bytes after an upload of 7"):
        remote.upload(tmp_path / "file", "ram://short")
