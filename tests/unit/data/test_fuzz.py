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


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Overwrites, inserts, removes or repeats a few bytes, half of the time in the header."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 2, 4, 16, 64))):
        reach = draw.choice((64, 512, len(data)))
        at = draw.randrange(max(1, min(reach, len(data))))
        kind = draw.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([draw.randrange(256)])
        elif kind == 1:
            data[at : at + 4] = draw.choice(
                (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\1\0\0")
            )
        elif kind == 2:
            del data[at : at + draw.choice((1, 7, 188, 1000))]
        elif kind == 3:
            data[at:at] = draw.randbytes(draw.choice((1, 4, 100)))
        elif kind == 4:
            data[at:at] = data[at : at + draw.choice((16, 500))]
        elif draw.random() < 0.1:
            del data[at:]
    return bytes(data)


def resident(process) -> int:
    """The largest memory of a process so far, in bytes."""
    text = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return 1024 * int(text.partition("VmHWM:")[2].split()[0])


@pytest.mark.variants
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the memory of Linux processes")
def test_mutated_media_give_a_sample_or_a_reason(tmp_path):
    seconds, seed = float(os.environ.get("FUZZ_SECONDS", 20)), int(os.environ.get("FUZZ_SEED", 0))
    intact, draw = samples(tmp_path), random.Random(seed)
    assert len(intact) > 15
    worker, outcomes, end = (
        scan._Worker(),
        {"read": 0, "refused": 0, "crashed": 0},
        time.monotonic() + seconds,
    )
    for number, extension in enumerate(itertools.cycle(intact)):
        if time.monotonic() > end and number >= len(intact):
            break
        path = tmp_path / f"{number}.{extension}"
        path.write_bytes(mutated(intact[extension], draw) if number >= len(intact) else intact[extension])
        begin = time.monotonic()
        answer = worker.probe(str(path), "image" if extension in PHOTOS else "video")
        assert time.monotonic() - begin < LONGEST, (seed, path.name)
        reason = answer["error"]
        assert number >= len(intact) or reason is None, (extension, reason)
        assert reason is None or (reason and "\n" not in reason), (seed, path.name, reason)
        outcome = "read" if reason is None else "crashed" if reason.startswith(scan.CRASHED) else "refused"
        outcomes[outcome] += 1
        if worker._process is not None:
            assert resident(worker._process) < LARGEST, (seed, path.name)
        if outcome != "crashed":
            path.unlink()
    worker.close()
    print(outcomes)
    assert outcomes["read"] > 0 and outcomes["refused"] > 0
