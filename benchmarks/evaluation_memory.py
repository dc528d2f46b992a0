"""Whether evaluating many clips takes more memory than evaluating few.

    python benchmarks/evaluation_memory.py --out=DIR [--clips=1000] [--bucket=video_5x32x32] [--codec=RUN]

Makes clips from scikit-image's photos by moving a window over each. Evaluates a tenth of them and then all,
each in a process of its own, and prints the peak resident memory of both.
"""

import argparse
import os
import pathlib
import subprocess
import sys

import av
import numpy as np
from skimage import data

FRAMES, SIDE = 24, 96
PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


def make(folder: pathlib.Path, count: int) -> None:
    """Writes the clips that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [getattr(data, name)() for name in PHOTOS]
    rng = np.random.default_rng(0)
    for i in range(count):
        photo = photos[i % len(photos)]
        places = np.linspace(*rng.integers(0, np.array(photo.shape[:2]) - SIDE, (2, 2)), FRAMES).round()
        path = folder / f"{i:04}.mp4"
        if path.exists():
            continue
        with av.open(str(path), "w") as file:
            stream = file.add_stream("libx264", rate=24)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuv420p"
            for y, x in places.astype(int):
                frame = np.ascontiguousarray(photo[y : y + SIDE, x : x + SIDE])
                file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            file.mux(stream.encode())


def peak(command: list[str]) -> float:
    """Runs a command and returns its peak resident memory in MB."""
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(process.returncode)
    return usage.ru_maxrss / 1024


def main() -> None:
    """Makes the clips and runs both evaluations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=pathlib.Path, help="folder for clips and results")
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--bucket", default="video_5x32x32")
    parser.add_argument("--codec", default="linear", help="a run or another codec (default: linear)")
    args = parser.parse_args()
    make(args.out / "clips", args.clips)
    for count in (args.clips // 10, args.clips):
        command = [sys.executable, "-m", "vaejax.evaluate", f"--compare={args.codec}"]
        command += [f"--data={args.out / 'clips'}", f"--buckets={args.bucket}", f"--samples={count}"]
        print(f"{count} clips: {peak([*command, f'--out={args.out / str(count)}']):.0f} MB", flush=True)


if __name__ == "__main__":
    main()
