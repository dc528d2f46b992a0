"""The cost of an image on its 2D path, on the general 3D path, and padded to a static clip.

    python benchmarks/image_path.py --out=image_path.json

All three give the same latent and the same first frame, which is checked. FLOPs are XLA's count for a TPU,
because XLA counts the body of a loop only once, and a CPU program consists of loops. Times are this
machine's, taken in turn, and ratios are medians over rounds.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.config import schema
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.conv import general_path
from vaejax.models.families import architecture_of
from vaejax.models.vaejax import SIZES


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", help="JSON file for all numbers")
    args = parser.parse_args()

    config = schema.defaults().model
    config.size = args.size
    model = Autoencoder(architecture_of(config))
    key = jax.random.key(0)
    image = jax.random.uniform(key, (args.batch, 1, args.resolution, args.resolution, 3), minval=-1.0)
    clip = jnp.repeat(image, 1 + model.architecture.temporal_factor, axis=1)
    params = jax.jit(model.init)(key, clip[:, :, :32, :32], key)["params"]
    # Kernels and gains start at 0, which would hide the network behind its linear path.
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(key, p.shape), params)

    def forward(params, x):
        mean = model.apply({"params": params}, x, method="encode").mean
        return mean, model.apply({"params": params}, mean, method="decode")

    def gradient(params, x):
        return jax.grad(lambda params: jnp.abs(forward(params, x)[1] - x).mean())(params)

    paths = {
        "image, 2D path": (image, contextlib.nullcontext),
        "image, 3D path": (image, general_path),
        f"static clip of {clip.shape[1]}": (clip, contextlib.nullcontext),
    }
    report, programs = {}, {}
    for function in (forward, gradient):
        for path, (x, context) in paths.items():
            # A new function for each path: jit would reuse the trace of an earlier one.
            traced = jax.jit(lambda params, x, function=function: function(params, x))
            with context():
                traced = traced.trace(params, x)
            flops = traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
            report[f"{function.__name__}: {path}"] = {"gflop": flops / 1e9, "seconds": []}
            programs[f"{function.__name__}: {path}"] = (traced.lower().compile(), x)

    first, *others = (
        [np.asarray(y[:, :1]) for y in programs[f"forward: {p}"][0](params, paths[p][0])] for p in paths
    )
    pairs = [(a, b) for other in others for a, b in zip(first, other, strict=True)]
    difference = max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
    print(f"largest difference between the paths, over the largest element: {difference:.1e}")
    if not difference < 1e-4:
        sys.exit("the paths do not agree")

    for _ in range(args.rounds):
        for name, (program, x) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params, x))
            report[name]["seconds"].append(time.perf_counter() - start)

    print(f"{'':36}{'GFLOP':>9}{'of 2D':>8}{'ms':>10}{'of 2D':>8}")
    for name, found in report.items():
        base = report[f"{name.split(':')[0]}: image, 2D path"]
        found["median"] = statistics.median(found["seconds"])
        found["flop_ratio"] = found["gflop"] / base["gflop"]
        pairs = zip(found["seconds"], base["seconds"], strict=True)
        found["time_ratio"] = statistics.median(a / b for a, b in pairs)
        print(
            f"{name:36}{found['gflop']:9.2f}{found['flop_ratio']:8.2f}"
            f"{1e3 * found['median']:10.1f}{found['time_ratio']:8.2f}"
        )
    if args.out:
        with open(args.out, "w") as file:
            json.dump({"difference": difference, "arguments": vars(args), "results": report}, file, indent=1)


if __name__ == "__main__":
    main()
