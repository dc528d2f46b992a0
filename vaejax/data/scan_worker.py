"""A worker process of a scan; it imports only the decoders, because every scan starts several."""

import base64
import json
import sys

from vaejax.data import media
from vaejax.runtime.content import Part


def serve() -> None:
    """The worker's loop: for each line [type, content, kind, scan, cuts] of stdin, it writes a JSON object.

    The content is a path, the fields of a `Part`, or bytes in base 64.
    """
    readers = {"str": str, "Part": lambda fields: Part(*fields), "bytes": base64.b64decode}
    reader = media.reader()
    for line in sys.stdin:
        name, where, kind, scan, cuts = json.loads(line)
        file = readers[name](where)
        try:
            content = media.headers(file, kind) if scan == "headers" else media.probe(file, kind, cuts)
            answer = content | {"error": None, "reader": reader, "scan": scan}
        except media.Unavailable as error:
            answer = {"error": f"{error}"}
        except media.Unreadable as error:
            answer = {"error": f"{error}", "reader": reader}
        print(json.dumps(answer), flush=True)
