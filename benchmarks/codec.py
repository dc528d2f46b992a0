"""Time and memory of encoding and decoding, beside diffusers' Wan 2.1 VAE of equal parameter count.

    python benchmarks/codec.py [--config=demo] [--clip=17x256x256] [--rounds=3] [--tile=0]

Both have random weights, compute in float32 on this machine's CPU, and run in processes of their own. They
take turns, so that other work slows both alike, and ratios are medians over rounds. Compilation and warm-up
are reported separately. Requires `pip install torch==2.13.0 diffusers`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

CHANNELS = 16


def vaejax(config: str, tile: int) -> tuple[int, Callable, Callable]:
    """Returns vaejax's parameter count, an encoder of uint8 (T, H, W, 3), and a decoder to such frames."""
    import importlib

    import jax
    import jax.numpy as jnp

    from vaejax.codec.codec import Codec
    from vaejax.codec.load import TrainedVAE
    from vaejax.models.autoencoder import Autoencoder
    from vaejax.models.families import architecture_of
    from vaejax.runtime import cache

    cache.keep_compiled()
    name, _, variant = config.partition(":")
    module = importlib.import_module(f"vaejax.configs.{name}")
    architecture = architecture_of(module.get_config(variant).model)
    architecture = architecture.replace(dtype="float32")
    frames = jnp.zeros((1, 1, 32, 32, 3))
    key = jax.random.key(0)
    params = jax.jit(Autoencoder(architecture).init)(key, frames, key)["params"]
    c = architecture.latent_channels
    codec = Codec(TrainedVAE(config, architecture, params, np.zeros(c), np.ones(c), 0, ""), tile=tile)
    return sum(x.size for x in jax.tree.leaves(params)), codec.encode, codec.decode


def wan(parameters: int) -> tuple[int, Callable, Callable]:
    """Returns the same for Wan, at the width that comes closest to `parameters`."""
    import torch
    from diffusers import AutoencoderKLWan

    def count(width: int) -> int:
        with torch.device("meta"):
            model = AutoencoderKLWan(base_dim=width, z_dim=CHANNELS)
        return sum(x.numel() for x in model.parameters())

    width = min(range(8, 161), key=lambda width: abs(count(width) - parameters))
    model = AutoencoderKLWan(base_dim=width, z_dim=CHANNELS).eval()

    @torch.inference_mode()
    def encode(frames):
        x = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        return model.encode(x).latent_dist.mean

    @torch.inference_mode()
    def decode(latents):
        x = model.decode(latents).sample[0].permute(1, 2, 3, 0)
        return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()

    return sum(x.numel() for x in model.parameters()), encode, decode


def work(contestant: tuple[int, Callable, Callable], shape: tuple[int, int, int]) -> None:
    """Times one round for every line on stdin.

    Prints the seconds of encoding and of decoding, the peak memory so far in GiB, and the parameter count.
    """
    parameters, encode, decode = contestant
    frames = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for _ in sys.stdin:
        start = time.perf_counter()
        latents = encode(frames)
        middle = time.perf_counter()
        decoded = decode(latents)
        end = time.perf_counter()
        assert decoded.shape == frames.shape
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(json.dumps([middle - start, end - middle, peak, parameters]), flush=True)


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="demo", help="shipped configuration of the autoencoder to time")
    parser.add_argument("--clip", default="17x256x256", help="frames x height x width (default: 17x256x256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tile", type=int, default=0, help="vaejax's tile side, pixels (default: no tiles)")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    shape = tuple(map(int, args.clip.split("x")))
    if args.work:
        work(vaejax(args.config, args.tile) if args.work == "vaejax" else wan(int(args.work)), shape)
        return

    def started(name: str) -> subprocess.Popen:
        command = [sys.executable, __file__, *sys.argv[1:], f"--work={name}"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def turn(process: subprocess.Popen) -> list[float]:
        process.stdin.write("go\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    ours = started("vaejax")
    first = {"vaejax": turn(ours)}
    theirs = started(str(first["vaejax"][3]))
    first["Wan"] = turn(theirs)
    rounds = []
    for i in range(args.rounds):
        rounds.append({"vaejax": turn(ours), "Wan": turn(theirs)})
        print(f"round {i + 1}: " + ", ".join(f"{k} {v[0]:.1f} + {v[1]:.1f} s" for k, v in rounds[-1].items()))
    for process in (ours, theirs):
        process.communicate()
    print(f"clip {args.clip}, float32, {args.rounds} rounds, medians")
    print("| | parameters | encode | decode | peak memory | first time |\n|---|---|---|---|---|---|")
    for name in first:
        encode, decode, peak, parameters = (
            statistics.median(x) for x in zip(*(r[name] for r in rounds), strict=True)
        )
        once = sum(first[name][:2])
        times = f"{encode:.2f} s | {decode:.2f} s | {peak:.2f} GiB | {once:.1f} s"
        print(f"| {name} | {parameters / 1e6:.1f}M | {times} |")
    for at, what in ((slice(0, 1), "encode"), (slice(1, 2), "decode"), (slice(0, 2), "both")):
        ratios = [sum(r["Wan"][at]) / sum(r["vaejax"][at]) for r in rounds]
        print(f"{what}: vaejax is {statistics.median(ratios):.2f} times as fast as Wan")


if __name__ == "__main__":
    main()
