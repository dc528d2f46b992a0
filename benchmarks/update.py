"""One whole update of vaejax's `tiny` and of published architectures in PyTorch: speed and memory.

    python benchmarks/update.py [--rounds=7] [--out=FILE]

An update is the forward and backward passes of the demo's two batches, 8 images of 64x64 and 2 clips of
9x64x64, clipping, Adam and the average of the parameters, in float32. See peers.py for the peers: they have
the size and the latents of `tiny`, are compiled, and keep channels last. All take turns, each in a process of
its own; ratios are medians over rounds. Requires torch and diffusers.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import turns

VAEJAX = "vaejax"
PEERS = ("Wan 2.1", "CogVideoX", "HunyuanVideo")  # those of peers.py, which needs torch
SHAPES = {"image_64x64": (8, 1, 64, 64, 3), "video_9x64x64": (2, 9, 64, 64, 3)}
TASKS = {"images": ("image_64x64",), "clips": ("video_9x64x64",), "both": tuple(SHAPES)}
SAMPLES = {task: sum(SHAPES[bucket][0] for bucket in buckets) for task, buckets in TASKS.items()}


def batches(task: str) -> dict[str, np.ndarray]:
    """Random frames of the buckets of a task."""
    rng = np.random.default_rng(0)
    return {bucket: rng.integers(0, 256, SHAPES[bucket], np.uint8) for bucket in TASKS[task]}


def vaejax_programs(task: str) -> tuple[Any, Sequence[Any]]:
    """Returns the programs that a run compiles, and its buckets."""
    from vaejax.config import check
    from vaejax.configs import demo
    from vaejax.data.bucket import buckets_of
    from vaejax.runtime import mesh as sharding
    from vaejax.train.programs import Programs

    config = demo.get_config()
    config.loss.weights.perceptual = config.loss.weights.adversarial = 0.0
    for bucket in SHAPES.keys() - set(TASKS[task]):
        config.data.buckets[bucket].batch = 0
    config = check(config)
    buckets = buckets_of(config)
    return Programs.of(config, buckets, sharding.make_mesh(config.mesh)), buckets


def of_vaejax(task: str) -> Callable[[], None]:
    """Returns an update by the programs that a run compiles."""
    import jax

    from vaejax.runtime import mesh as sharding
    from vaejax.train import state as states

    programs, buckets = vaejax_programs(task)
    mesh, phase, frames, key = programs.mesh, programs.phase(0), batches(task), jax.random.key(0)
    current, compiled = [states.create(programs.model, programs.optimizer, None, mesh, 0)], []

    def update() -> None:
        if not compiled:  # here, so that the first update includes it, as in PyTorch
            zeros = programs.zeros(phase).lower().compile()
            gradients = {b.name: programs.gradients(phase, b).lower().compile() for b in buckets}
            compiled[:] = zeros, gradients, programs.apply(phase).lower().compile()
        zeros, gradients, apply = compiled
        gathered = zeros(current[0])
        for bucket in buckets:
            batch = sharding.shard_batch(mesh, frames[bucket.name])
            gathered, _ = gradients[bucket.name](
                current[0], gathered, batch, key, programs.networks, latents=None
            )
        current[0], _ = apply(current[0], gathered)
        jax.block_until_ready(current[0])

    return update


def of_peer(name: str, task: str) -> Callable[[], None]:
    """Returns an update of a peer."""
    import peers

    trainer, frames = peers.Trainer(name, 1e-3, 1000), batches(task)
    return lambda: trainer.update(frames)


def flops(name: str, task: str) -> int:
    """FLOPs of the forward and backward passes, without recomputation."""
    if name == VAEJAX:
        programs, buckets = vaejax_programs(task)
        return sum(programs.model_flops(programs.phase(0), bucket) for bucket in buckets)
    import peers

    return peers.Trainer(name, 1e-3, 1000).flops(batches(task))


def measure(task: str, rounds: int) -> dict[str, dict[str, Any]]:
    """Lets all networks take turns at updates.

    Returns:
      By name, what `turns.compete` returns, and 'first', the seconds of the updates that compile.
    """
    contestants = {
        name: turns.Contestant([sys.executable, __file__, f"--work={name}", "--tasks", task])
        for name in (VAEJAX, *PEERS)
    }
    # PyTorch compiles a second time in the second update.
    first = {name: one.turn()[0] + one.turn()[0] for name, one in contestants.items()}
    found = turns.compete(contestants, rounds)
    for name, one in contestants.items():
        found[name]["first"] = first[name]
        one.end()
    return found


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--out", help="JSON file for all numbers")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # the first update includes compilation
        task = args.tasks[0]
        turns.serve(of_vaejax(task) if args.work == VAEJAX else of_peer(args.work, task))
        return
    report = {}
    print(
        "| task | network | GFLOP | samples/s | time | CPU time | peak memory | first update |\n|"
        + "---|" * 8
    )
    for task in args.tasks:
        report[task] = measure(task, args.rounds)
        for name, found in report[task].items():
            rate = SAMPLES[task] / found["seconds"]["median"]
            report[task][name]["flops"] = count = flops(name, task)
            cells = [f"{found[what]['ratio']:.2f}x" for what in ("seconds", "cpu_seconds")]
            cells += [f"{found['peak_gib']:.2f} GiB", f"{found['first']:.1f} s"]
            print(f"| {task} | {name} | {count / 1e9:.0f} | {rate:.1f} | {' | '.join(cells)} |", flush=True)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
