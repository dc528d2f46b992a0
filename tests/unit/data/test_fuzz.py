"""Mutated photos and clips of every kind: always a sample or a named reason, in bounded time and memory.

FUZZ_SECONDS=1200 runs for 20 minutes; FUZZ_SEED draws other mutations.
"""

import io
import itertools
import os
import pathlib
import random
import time

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.media_files import corners, write_clip
from tests.support.mutation import mutated, resident
from vaejax.data import scan

LONGEST, LARGEST = 20.0, 1.5e9  # seconds for a file; bytes of a worker's memory
PHOTOS = {
    "jpg": {"quality": 90},
    "png": {},
    "webp": {},
    "gif": {},
    "bmp": {},
    "tif": {},
    "avif": {},
    "jp2": {},
    "ppm": {},
}
CLIPS = {
    "mp4": "libx264",
    "mov": "libx264",
    "mkv": "libx265",
    "webm": "libvpx-vp9",
    "avi": "mpeg4",
    "mpg": "mpeg2video",
    "ts": "libx264",
    "flv": "flv1",
    "wmv": "wmv2",
    "ogv": "libtheora",
    "mxf": "mpeg2video",
    "y4m": "rawvideo",
}


def samples(folder) -> dict[str, bytes]:
    """The bytes of a small intact file of every kind, by extension."""
    found = {}
    for extension, options in PHOTOS.items():
        out = io.BytesIO()
        photo, kind = Image.fromarray(corners()), {"jpg": "JPEG", "jp2": "JPEG2000", "tif": "TIFF"}
        icc = {"icc_profile": bytes(200)} if extension in ("jpg", "png", "webp", "tif") else {}
        photo.save(out, kind.get(extension, extension.upper()), **options, **icc)
        found[extension] = out.getvalue()
    for extension, codec in CLIPS.items():
        path = pathlib.Path(folder) / f"clip.{extension}"
        try:
            write_clip(path, [np.roll(corners(), i, 1) for i in range(8)], codec=codec)
        except (av.error.FFmpegError, ValueError):  # an encoder that this build of FFmpeg lacks
            continue
        found[extension] = path.read_bytes()
    return found


@pytest.mark.variants
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory of Linux processes")
def test_mutated_media_give_a_sample_or_a_reason(tmp_path):
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", 20)), int(os.environ.get("FUZZ_SEED", 0))
    intact, draw = samples(tmp_path), random.Random(seed)
    assert len(intact) > 15
    worker, outcomes, end = (
        scan.Decoder(),
        {"read": 0, "refused": 0, "crashed": 0},
        time.monotonic() + seconds,
    )
    for number, extension in enumerate(itertools.cycle(intact)):
        if time.monotonic() > end and number >= len(intact):
            break
        path = tmp_path / f"{number}.{extension}"
        path.write_bytes(mutated(intact[extension], draw) if number >= len(intact) else intact[extension])
        begin = time.monotonic()
        kind, how = (
            "image" if extension in PHOTOS else "video",
            ("full", "headers")[number // len(intact) % 2],
        )
        answer = worker.probe(str(path), kind, how)
        assert time.monotonic() - begin < LONGEST, (seed, path.name)
        reason = answer["error"]
        assert number >= len(intact) or reason is None, (extension, reason)
        assert reason is None or (reason and "\n" not in reason), (seed, path.name, reason)
        outcome = "read" if reason is None else "crashed" if "crashed" in reason else "refused"
        outcomes[outcome] += 1
        if worker._process is not None:
            assert resident(worker._process) < LARGEST, (seed, path.name)
        if outcome != "crashed":
            path.unlink()
    worker.close()
    print(outcomes)
    assert outcomes["read"] > 0 and outcomes["refused"] > 0
