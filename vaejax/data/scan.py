"""Probes files in worker processes, so that a decoder that crashes costs one file and not the scan."""

import base64
import contextlib
import os
from collections.abc import Iterator

from tqdm import tqdm

from vaejax.data.kinds.collection import Collection
from vaejax.data.worker import Crashed, Worker, in_parallel
from vaejax.runtime.content import Content
from vaejax.runtime.host import cores


def probe_files(
    collection: Collection,
    files: list[dict],
    workers: int | None,
    progress: bool,
    scan: str = "full",
    cuts: bool = False,
) -> Iterator[dict]:
    """Probes files of a collection in worker processes; yields their index entries in order of completion.

    Args:
      collection: the collection that contains the files.
      files: path, kind, size and mtime_ns of each, and where it is; see `Collection.files`.
      workers: number of processes; None starts one per core.
      progress: whether to show a progress bar.
      scan: 'full' or 'headers'.
      cuts: whether to find the cuts in clips.
    """
    if not files:
        return
    count = min(len(files), max(1, workers or cores()))

    def probe(decoder: Decoder, file: dict) -> dict:
        return file | decoder.probe(collection.content_of(file), file["kind"], scan, cuts)

    with contextlib.closing(in_parallel(Decoder, count, probe, files)) as done:
        yield from tqdm(done, "scanning", len(files), unit="file", disable=not progress)


class Decoder(Worker):
    """A process that probes one file at a time."""

    def __init__(self):
        super().__init__("vaejax.data.scan_worker")

    def probe(self, content: Content, kind: str, scan: str = "full", cuts: bool = False) -> dict:
        """Returns what `media.probe` or `media.headers` does, plus 'error', 'reader' and 'scan' of an index.

        If probing failed, 'error' is the reason; if that is not the file's content, 'reader' is missing.
        """
        if isinstance(content, str) and "\ufffd" in content and not os.path.exists(content):
            return {"error": "the file's name is not UTF-8"}
        where = base64.b64encode(content).decode() if isinstance(content, bytes) else content
        try:
            return self.ask([type(content).__name__, where, kind, scan, cuts])
        except Crashed as error:
            return {"error": f"the decoder crashed ({error})"}
