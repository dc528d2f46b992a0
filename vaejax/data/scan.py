"""Probes files in worker processes, so that a decoder that crashes costs one file and not the scan."""

import base64
import contextlib
import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

from tqdm import tqdm

from vaejax.data import parent
from vaejax.data.kinds.collection import Collection
from vaejax.runtime import storage
from vaejax.runtime.host import cores
from vaejax.runtime.storage import Content


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
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    crew = [_Worker() for _ in range(count)]
    for worker in crew:
        idle.put(worker)

    def probe(file: dict) -> dict:
        worker = idle.get()
        try:
            return file | worker.probe(_content(collection, file), file["kind"], scan, cuts)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(count)
    try:
        done = as_completed([pool.submit(probe, file) for file in files])
        for future in tqdm(done, "scanning", len(files), unit="file", disable=not progress):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        for worker in crew:
            worker.close()


def _content(collection: Collection, file: dict) -> Content:
    path, shard = (storage.join(collection.root, file.get(key) or "") for key in ("path", "shard"))
    position, length = (file.get(key) or 0 for key in ("position", "length"))
    return collection.content(path, shard if file.get("shard") else "", position, length)


class _Worker:
    """A process that probes one file at a time.

    A multiprocessing pool would import the caller's main module (and JAX) in every worker, and a crashed
    decoder would break the whole pool. Here a crash affects only the file that caused it.
    """

    def __init__(self):
        self._process: subprocess.Popen[str] | None = None

    def probe(self, content: Content, kind: str, scan: str = "full", cuts: bool = False) -> dict:
        """Returns what `media.probe` or `media.headers` does, plus 'error', 'reader' and 'scan' of an index.

        If probing failed, 'error' is the reason; if that is not the file's content, 'reader' is missing.
        """
        if isinstance(content, str) and "\ufffd" in content and not os.path.exists(content):
            return {"error": "the file's name is not UTF-8"}
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            where = base64.b64encode(content).decode() if isinstance(content, bytes) else content
            request = [type(content).__name__, where, kind, scan, cuts]
            print(json.dumps(request), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            return json.loads(answer)
        code = process.wait()
        self.close()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return {"error": f"the decoder crashed ({how})"}

    def _start(self) -> subprocess.Popen[str]:
        parent.announce()
        paths = [os.path.abspath(path) for path in sys.path if not path or os.path.isdir(path)]
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                # Stdin ends with the parent too, but a worker does not read stdin while decoding a long file.
                "from vaejax.data import parent; parent.watch();"
                " from vaejax.data import scan_worker; scan_worker.serve()",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            # NumPy's BLAS would start a thread per core in each worker, but decoding uses no BLAS.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches only the parent, which saves, then closes this process
        )
        return self._process

    def close(self) -> None:
        """Ends the process."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin and process.stdout
            with contextlib.suppress(BrokenPipeError):  # a crashed process did not read its last request
                process.stdin.close()
            process.stdout.close()
            process.wait()
