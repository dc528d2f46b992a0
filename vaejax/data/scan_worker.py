"""A worker process of a scan; it imports only the decoders, because every scan starts several."""

import json
import sys

from vaejax.data import media


def serve() -> None:
    """The worker's loop: reads [path, kind] lines from stdin and writes a JSON object for each."""
    reader = media.reader()
    for line in sys.stdin:
        path, kind = json.loads(line)
        try:
            answer = media.probe(path, kind) | {"error": None, "reader": reader}
        except media.Unavailable as error:
            answer = {"error": f"{error}"}
        except media.Unreadable as error:
            answer = {"error": f"{error}", "reader": reader}
        print(json.dumps(answer), flush=True)
