"""A worker process of a scan; it imports only the decoders, because every scan starts several."""

import json
import sys

from vaejax.data import media


def serve() -> None:
    """The worker's loop: for each line [path, kind, scan, cuts] of stdin, it writes a JSON object."""
    reader = media.reader()
    for line in sys.stdin:
        path, kind, scan, cuts = json.loads(line)
        try:
            content = media.headers(path, kind) if scan == "headers" else media.probe(path, kind, cuts)
            answer = content | {"error": None, "reader": reader, "scan": scan}
        except media.Unavailable as error:
            answer = {"error": f"{error}"}
        except media.Unreadable as error:
            answer = {"error": f"{error}", "reader": reader}
        print(json.dumps(answer), flush=True)
