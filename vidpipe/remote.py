"""Addresses of other machines' file systems, as `s3://bucket/records`: the only importer of tensorflow-io.

All files of a dataset are read through tf.io.gfile, which knows local paths and gs://. tensorflow-io adds s3://
and others to it; it is imported when an address first asks for one.
"""

import contextlib
import os

import tensorflow as tf

from vidpipe.spec import VidpipeError

Address = str | os.PathLike[str]


class RemoteError(VidpipeError):
    """An address is of a file system that this installation cannot reach."""


def is_remote(address: Address) -> bool:
    """Whether `address` has a scheme, as in `s3://bucket/records`."""
    return "://" in os.fspath(address)


def connect(address: Address) -> None:
    """Makes tf.io.gfile know the scheme of `address`; nothing to do for a local path.

    The S3 client takes its settings from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_REGION, and S3_ENDPOINT, with its http:// or https://, for a server that is not Amazon's.

    Raises:
      RemoteError: nothing that is installed serves the scheme.
    """
    if not is_remote(address):
        return
    # After a cut connection tensorflow-io's download in parts gives wrong bytes, as many as asked for, and
    # no error.
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
    """Copies a local file to `address`, where nothing shows until all of it is there.

    Raises:
      tf.errors.OpError: the file system refused, or kept another number of bytes.
    """
    tf.io.gfile.copy(path, address, overwrite=True)
    sent, kept = tf.io.gfile.stat(path).length, tf.io.gfile.stat(address).length
    if sent != kept:
        raise tf.errors.DataLossError(None, None, f"{address} has {kept} bytes after sending {sent}")
