"""Reads files that vaejax wrote, in a process of its own, so that a crash, a hang or its memory can be seen.

Each line of stdin is a JSON list of a kind, a key of READERS, and a path. The answer on stdout is a line of
JSON: a value if the file was read, otherwise the reason of the refusal, or the unexpected exception.
"""

import hashlib
import json
import sys

from vaejax.errors import InputError


def read_latent(path: str) -> str:
    """The hash of the latents of a file."""
    from vaejax.codec.latent_file import LatentFile

    file = LatentFile(path)
    digest = hashlib.sha256()
    for latents in file.chunks(4):
        digest.update(latents.tobytes())
    if audio := file.audio():
        audio.file.close()
    return digest.hexdigest()


def read_model(path: str) -> str:
    """A hash of the parameters of a run or an export."""
    from vaejax.codec.load import fingerprint, load_vae

    return fingerprint(load_vae(path).params)


def read_index(path: str) -> str:
    """The paths, sizes and errors of a folder's media index."""
    from vaejax.data.index import load_or_build

    table = load_or_build(path, workers=1, progress=False)
    return json.dumps(table.drop_columns(["mtime_ns"]).to_pylist())


READERS = {"latent": read_latent, "model": read_model, "index": read_index}


def serve() -> None:
    """Answers requests until stdin ends."""
    answers = sys.stdout
    sys.stdout = sys.stderr
    for line in sys.stdin:
        kind, path = json.loads(line)
        try:
            answer = {"value": READERS[kind](path), "error": None}
        except InputError as error:
            answer = {"value": None, "error": str(error)}
        except Exception as error:  # the test names the file that caused it
            answer = {"value": None, "error": None, "traceback": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
