"""A worker process that writes shards."""

import base64
import json
import pickle
import sys

from vaejax.data import shards
from vaejax.errors import InputError


def serve() -> None:
    """The worker's loop: each line of stdin has the pickled arguments of `shards.write`, in base 64.

    For each line it writes a JSON string, the reason of a failure or ''.
    """
    for line in sys.stdin:
        packing, shard = pickle.loads(base64.b64decode(json.loads(line)))
        try:
            shards.write(packing, shard)
            reason = ""
        except InputError as error:
            reason = str(error)
        print(json.dumps(reason), flush=True)
