"""Errors of S3 in one line: the real client, against a server that refuses."""

import contextlib
import http.server
import threading

import pytest

from tests.support.object_stores import environment
from vaejax.errors import InputError
from vaejax.runtime import storage

s3fs = pytest.importorskip("s3fs", reason="of the extra `s3`")

MALFORMED = "The authorization header is malformed; the region 'us-east-1' is wrong; expecting 'eu-west-1'"


@contextlib.contextmanager
def refusing(status, code, message):
    """A server of S3 that refuses every request in S3's words."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        keys = {
            "AWS_ACCESS_KEY_ID": "made",
            "AWS_SECRET_ACCESS_KEY": "made",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        try:
            with environment(AWS_ENDPOINT_URL=url, **keys):
                s3fs.S3FileSystem.clear_instance_cache()
                yield
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "message", "expected"),
    [
        (400, "AuthorizationHeaderMalformed", MALFORMED, "wrong region or endpoint"),
        (403, "AccessDenied", "Access Denied", "permission denied"),
    ],
    ids=["region", "permission"],
)
def test_a_refusal_of_s3_is_one_line_that_names_the_reason(status, code, message, expected):
    line = rf"^data\.media = s3://mine/media: {expected}[^\n]*; accepted: [^\n]+$"
    with refusing(status, code, message), pytest.raises(InputError, match=line):
        list(storage.walk("s3://mine/media", "data.media"))
