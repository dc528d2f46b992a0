"""What an update costs if the encoder is frozen, and if its latents come from files, on this machine.

    python benchmarks/frozen.py [--family=wan] [--size=tiny] [--bucket=video_9x64x64] [--batch=1] [--out=FILE]

With FLOPs E of encoding a batch and D of decoding it, training both halves takes 3 (E + D), the decoder alone
E + 3 D, and the decoder on latents from files 3 D. The updates are those of a run, with the optimizer and the
moving average. They take turns, and ratios are medians over rounds. Prints a table, with the targets.
"""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vaejax.codec.load import TrainedVAE, fingerprint
from vaejax.config import check
from vaejax.configs import demo
from vaejax.data.bucket import buckets_of
from vaejax.data.pipeline import Batch
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.families import architecture_of
from vaejax.runtime import flops
from vaejax.runtime import mesh as sharding
from vaejax.runtime.watchdog import Watchdog
from vaejax.train import initial
from vaejax.train import state as states
from vaejax.train.programs import Programs
from vaejax.train.update import Update

SLOWEST = 1.1  # time over that of training both, divided by the same ratio of FLOPs
RUNS = {
    "both": {"optim.train": ("encoder", "decoder")},
    "decoder": {"optim.train": ("decoder",)},
    "decoder, latents from files": {"optim.train": ("decoder",), "data.latents": "LATENTS"},
}


def configuration(args: argparse.Namespace, **changes):
    """The checked configuration of a run."""
    config = demo.get_config()
    config.model.family, config.model.size = args.family, args.size
    config.init = "RANDOM"
    config.data.media = "FOLDER"
    config.data.buckets = {args.bucket: {"batch": args.batch}}
    config.loss.weights.perceptual = config.loss.weights.adversarial = 0.0
    config.update_from_flattened_dict(changes)
    return check(config)


def random_model(args: argparse.Namespace) -> TrainedVAE:
    """An autoencoder with random parameters."""
    model = Autoencoder(architecture_of(configuration(args).model))
    clip, key = jnp.zeros(model.architecture.example_shape), jax.random.key(0)
    params = jax.tree.map(np.asarray, jax.jit(model.init)(key, clip, key)["params"])
    return TrainedVAE("RANDOM", model.architecture, params, None, None, 0, fingerprint(params))


def forward_flops(known: TrainedVAE, shape: tuple[int, ...]) -> tuple[int, int]:
    """FLOPs of encoding a batch of shape (B, T, H, W, C), and of decoding its latents."""
    model, variables = Autoencoder(known.architecture), {"params": known.params}
    x = jnp.zeros(shape)
    z = jnp.zeros((len(x), *known.architecture.latent_shape(*shape[1:4])))
    encode, decode = (
        jax.make_jaxpr(lambda y, m=method: model.apply(variables, y, shape[1] > 1, method=m))(y)
        for method, y in (("encode", x), ("decode", z))
    )
    return flops.count(encode), flops.count(decode)


def updater(args: argparse.Namespace, known: TrainedVAE, changes: dict) -> Callable[[], float]:
    """A function that runs an update and returns its seconds."""
    config = configuration(args, **changes)
    mesh = sharding.make_mesh(config.mesh)
    (bucket,) = buckets_of(config)
    programs = Programs.of(config, [bucket], mesh, known=known)
    p = programs
    initialize = states.initializer(
        p.model, p.optimizer, p.adversary, mesh, config.seed, p.trained, p.projections
    )
    state = [initial.start_from(known, initialize(), config)]
    update = Update(programs, [bucket], config.seed)
    update.prepare(0, Watchdog(0))
    rng, size = np.random.default_rng(0), (bucket.frames, bucket.height, bucket.width)
    frames = rng.integers(256, size=(args.batch, *size, 3), dtype=np.uint8)
    latents = rng.normal(size=(args.batch, *known.architecture.latent_shape(*size))).astype(np.float32)
    batch = Batch(frames, range(args.batch), [], [], latents if programs.cached else None)

    def run() -> float:
        begin = time.perf_counter()
        state[0], terms = update(state[0], {bucket.name: batch})
        jax.block_until_ready((state[0].params, terms))
        return time.perf_counter() - begin

    run()
    return run


def main() -> None:
    """Times the updates and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", default="wan")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--bucket", default="video_9x64x64")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", help="JSON file for all numbers")
    args = parser.parse_args()
    known = random_model(args)
    runs = {name: updater(args, known, changes) for name, changes in RUNS.items()}
    (bucket,) = buckets_of(configuration(args))
    e, d = forward_flops(known, (args.batch, bucket.frames, bucket.height, bucket.width, 3))
    share = {"both": 1.0, "decoder": (e + 3 * d) / (3 * (e + d)), "decoder, latents from files": d / (e + d)}
    times = [{name: run() for name, run in runs.items()} for _ in range(args.rounds)]
    print(f"{args.family}, {args.size}, {args.bucket}, batch {args.batch}: E = {e:.3g}, D = {d:.3g} FLOPs")
    print("| trains | seconds | time | FLOPs | time / FLOPs |\n|---|---|---|---|---|")
    found = {}
    for name in RUNS:
        seconds = statistics.median(each[name] for each in times)
        ratio = statistics.median(each[name] / each["both"] for each in times)
        found[name] = {"seconds": seconds, "time": ratio, "flops": share[name]}
        relative = ratio / share[name]
        verdict = "" if name == "both" else "; met" if relative <= SLOWEST else "; missed"
        print(f"| {name} | {seconds:.3f} | {ratio:.3f} | {share[name]:.3f} | {relative:.2f}{verdict} |")
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps({"arguments": vars(args), "runs": found}, indent=1))


if __name__ == "__main__":
    main()
