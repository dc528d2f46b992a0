"""How fast samples are decoded, and how long a training step waits for them.

    python benchmarks/data.py [--media=FOLDER] [--out=FILE.json]

It first decodes each bucket alone in one thread, and prints frames and megapixels per second of one core.
Pixels are counted at the bucket's size, not the file's. Then worker processes decode all buckets together: at
full speed, and for a consumer that computes for a fixed time per update, with the share of its time waiting.
"""

import argparse
import json
import os
import platform
import statistics
import time

from vaejax.config.schema import defaults
from vaejax.data.bucket import parse_buckets
from vaejax.data.pipeline import train_stream
from vaejax.data.sampler import Sampler
from vaejax.data.sources import check_buckets, open_sources
from vaejax.errors import InputError

BUCKETS = {
    "image_64x64": {"batch": 8},
    "image_256x256": {"batch": 4},
    "image_256x448": {"batch": 4},
    "video_17x64x64": {"batch": 4},
    "video_17x128x224": {"batch": 2},
    "video_17x256x448": {"batch": 1},
}


def one_core(sources, bucket, data, seconds):
    """Measures samples of one bucket, decoded one after the other in this process."""
    sampler = Sampler(sources, bucket, "train", data)
    sampler[0], sampler[1]
    times = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(times) < 3:
        start, cpu = time.perf_counter(), time.process_time()
        sampler[len(times) + 2]
        times.append((time.perf_counter() - start, time.process_time() - cpu))
    wall, cpu = (sum(column) for column in zip(*times, strict=True))
    frames = len(times) * bucket.frames
    return {
        "samples": len(times),
        "frames_per_second": frames / wall,
        "frames_per_core_second": frames / cpu,
        "megapixels_per_core_second": frames * bucket.height * bucket.width / 1e6 / cpu,
        "milliseconds_per_sample": 1e3 * statistics.median(wall for wall, _ in times),
    }


def workers_ahead(sources, buckets, data, workers, seconds, compute):
    """Measures all buckets through worker processes: at full speed, then with a busy consumer."""
    data.workers = workers
    frames = sum(bucket.frames * bucket.batch for bucket in buckets)
    result = {"workers": workers, "compute_seconds": compute}
    begin = time.perf_counter()
    with train_stream(sources, buckets, data, seed=0) as stream:
        next(stream)
        result["seconds_to_first_update"] = time.perf_counter() - begin
        for _ in range(2):
            next(stream)
        updates, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds or updates < 3:
            next(stream)
            updates += 1
        result["frames_per_second"] = frames * updates / (time.perf_counter() - begin)
        waited, updates, begin = 0.0, 0, time.perf_counter()
        while time.perf_counter() - begin < max(seconds, 6 * compute):
            time.sleep(compute)  # an accelerator's computation, which does not occupy the cores
            start = time.perf_counter()
            next(stream)
            waited += time.perf_counter() - start
            updates += 1
        result["waiting_share"] = waited / (time.perf_counter() - begin)
    return result


def main():
    """Runs the measurements and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--media", metavar="FOLDER", default="", help="photos and clips (default: the demo's)"
    )
    parser.add_argument("--out", metavar="FILE", help="JSON file for the numbers")
    parser.add_argument(
        "--seconds", metavar="S", type=float, default=4.0, help="seconds per measurement (default: 4)"
    )
    parser.add_argument(
        "--compute", metavar="S", type=float, default=0.5, help="seconds to compute per update (default: 0.5)"
    )
    parser.add_argument(
        "--workers",
        metavar="N",
        type=int,
        nargs="+",
        default=[1, 2],
        help="numbers of worker processes (default: 1 2)",
    )
    chosen = parser.parse_args()

    data = defaults().data
    data.update(media=chosen.media, zoom=1.25, sources={} if chosen.media else {"demo": {"kind": "demo"}})
    sources = open_sources(data)
    buckets = []
    for bucket in parse_buckets(BUCKETS, 8, 4):
        try:
            check_buckets(sources, [bucket], data)
            buckets.append(bucket)
        except InputError as error:
            print(f"left out: {error}")

    found = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "one_core": {}}
    print(f"{'one core':20}{'frames/s':>10}{'megapixels/s':>14}{'ms/sample':>12}")
    for bucket in buckets:
        one = found["one_core"][bucket.name] = one_core(sources, bucket, data, chosen.seconds)
        print(
            f"{bucket.name:20}{one['frames_per_core_second']:10.1f}{one['megapixels_per_core_second']:14.2f}"
            f"{one['milliseconds_per_sample']:12.1f}"
        )
    found["workers"] = []
    print(f"\n{'all buckets':20}{'frames/s':>10}{'first update s':>16}{'waiting share':>15}")
    for workers in chosen.workers:
        one = workers_ahead(sources, buckets, data, workers, chosen.seconds, chosen.compute)
        found["workers"].append(one)
        print(
            f"{f'{workers} workers':20}{one['frames_per_second']:10.1f}{one['seconds_to_first_update']:16.1f}"
            f"{one['waiting_share']:15.1%}"
        )
    if chosen.out:
        with open(chosen.out, "w") as file:
            json.dump(found, file, indent=2)


if __name__ == "__main__":
    main()
