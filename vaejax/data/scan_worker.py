"""A worker process of a scan; it imports only the decoders, because every scan starts several."""

import json
import sys

from vaejax.data import media


def serve() -> None:
    """The worker's loop: reads [path, kind] lines from stdin and writes a JSON object for each."""
    for line in sys.stdin:
        path, kind = json.loads(line)
        try:
            answer = media.probe(path, kind) | {"error": None}
        except media.Unreadable as error:
            answer = {"error": f"{error}"}
        print(json.dumps(answer), flush=True)
