"""What a scan costs: CPU-hours per terabyte of H.264 clips and of JPEGs, decoded whole and by headers.

    python benchmarks/scan.py [--megabytes=200]

The clips are the demo's bigbuckbunny.mp4 at 1080p with film grain, at a bit rate of about 8 Mb/s. The photos
are the demo's at 12 megapixels with grain, at JPEG quality 90. Copies make up the megabytes. They are in the
page cache, so the times are those of the CPU alone. The start of the process does not count.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

import av
import numpy as np
from PIL import Image

from vaejax.data import media
from vaejax.data.kinds import demo

BIT_RATE = 8_000_000
SIZES = {"clips": (1920, 1080), "photos": (4000, 3000)}


def grainy(image: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Enlarges a picture and adds noise with a standard deviation of 3 levels."""
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC), np.int16)
    noise = rng.normal(0, 3, (size[1], size[0], 1)).astype(np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


def clip(rng: np.random.Generator) -> bytes:
    """Encodes 5 seconds of H.264 with x264's preset fast, in MP4."""
    out = io.BytesIO()
    with av.open(demo.path("bigbuckbunny.mp4")) as old, av.open(out, "w", format="mp4") as new:
        stream = new.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZES["clips"]
        stream.pix_fmt, stream.bit_rate, stream.options = "yuv420p", BIT_RATE, {"preset": "fast"}
        for frame in old.decode(video=0):
            image = grainy(frame.to_image(), SIZES["clips"], rng)
            new.mux(stream.encode(av.VideoFrame.from_image(image)))
        new.mux(stream.encode())
    return out.getvalue()


def photos(rng: np.random.Generator) -> list[bytes]:
    """Encodes three photos."""
    made = []
    for name in ("china.jpg", "astronaut.png", "chelsea.png"):
        out = io.BytesIO()
        grainy(Image.open(demo.path(name)), SIZES["photos"], rng).save(out, "JPEG", quality=90)
        made.append(out.getvalue())
    return made


def main() -> None:
    """Prints one line for each kind of file and each kind of scan."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, default=200, help="size of the clips, and of the photos")
    megabytes = parser.parse_args().megabytes
    rng = np.random.default_rng(0)
    scans = {
        "full": media.probe,
        "full with cuts": lambda path, kind: media.probe(path, kind, cuts=True),
        "headers": media.headers,
    }
    for name, kind, ending, made in (
        ("clips", "video", "mp4", [clip(rng)]),
        ("photos", "image", "jpg", photos(rng)),
    ):
        with tempfile.TemporaryDirectory() as folder:
            files, size = [], 0
            while size < megabytes * 1e6:
                files.append(Path(folder, f"{len(files)}.{ending}"))
                size += files[-1].write_bytes(made[len(files) % len(made)])
            about = media.probe(files[0], kind)
            rate = (
                f", {8 * files[0].stat().st_size / about['duration'] / 1e6:.1f} Mb/s"
                if kind == "video"
                else ""
            )
            print(f"{len(files)} {name}, {about['width']}x{about['height']}{rate}, {size / 1e6:.0f} MB")
            for scan, probe in scans.items():
                if kind == "image" and scan == "full with cuts":
                    continue
                probe(files[0], kind)  # imports
                start = time.process_time()
                for file in files:
                    probe(file, kind)
                spent = time.process_time() - start
                hours = spent / size * 1e12 / 3600
                print(f"  {scan:15} {1e3 * spent / len(files):7.1f} ms a file, {hours:7.2f} CPU-hours per TB")


if __name__ == "__main__":
    main()
