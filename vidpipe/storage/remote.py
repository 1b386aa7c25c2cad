"""Addresses of remote file systems, such as `s3://bucket/records`: the only importer of tensorflow-io.

Files are read and written through tf.io.gfile, which knows local paths and gs:// addresses. tensorflow-io
adds s3:// and others; it is imported when the first such address is used.
"""

import contextlib
import os

import tensorflow as tf

from vidpipe.errors import VidpipeError

Address = str | os.PathLike[str]


class RemoteError(VidpipeError):
    """The file system of an address cannot be reached with the installed packages."""


def is_remote(address: Address) -> bool:
    """Whether `address` has a scheme, as in `s3://bucket/records`."""
    return "://" in os.fspath(address)


def connect(address: Address) -> None:
    """Makes the scheme of `address` available in tf.io.gfile; does nothing for a local path.

    The S3 client takes its settings from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_REGION, and for a server other than Amazon's S3_ENDPOINT, with http:// or https://.

    Raises:
      RemoteError: no installed package supports the scheme.
    """
    if not is_remote(address):
        return
    # tensorflow-io downloads a file in parts. If the connection breaks, it returns the right number of wrong
    # bytes without an error.
    os.environ.setdefault("S3_DISABLE_MULTI_PART_DOWNLOAD", "1")
    scheme = os.fspath(address).partition("://")[0]
    if scheme in tf.io.gfile.get_registered_schemes():
        return
    with contextlib.suppress(ImportError):
        import tensorflow_io  # noqa: F401
    if scheme not in tf.io.gfile.get_registered_schemes():
        raise RemoteError(
            f"{address}: TensorFlow {tf.__version__} as installed here cannot reach {scheme}:// addresses. "
            "s3://, hdfs:// and az:// need Python 3.10 to 3.12 and pip install 'vidpipe[io]' (tensorflow-io "
            "0.37.1 with TensorFlow 2.17)."
        )


def upload(path: Address, address: Address) -> None:
    """Copies a local file to `address`, where it appears only when it is complete.

    Raises:
      tf.errors.OpError: the file system rejected the file, or stored another number of bytes.
    """
    tf.io.gfile.copy(path, address, overwrite=True)
    sent, stored = tf.io.gfile.stat(path).length, tf.io.gfile.stat(address).length
    if sent != stored:
        raise tf.errors.DataLossError(None, None, f"{address} has {stored} bytes after an upload of {sent}")
