"""Wan's autoencoder here against diffusers' in PyTorch, with the same weights, on this machine's CPU.

    python benchmarks/wan.py [--size=wan2.1] [--tasks encode_17x256x256 train_4x1x128x128] [--out=FILE]

A task is encode_TxHxW or decode_TxHxW, of one clip, or train_BxTxHxW: a forward and a backward pass of the
encoder and the decoder, and Adam. Every contestant works in float32, in a process of its own. Their results
are compared first. Then they take turns, so that other work slows all alike, and ratios are medians over
rounds. On a shared machine OpenMP's barriers slow PyTorch several times over, which flatters vaejax; the
ratio of CPU times with --threads=1 hardly depends on other work. Requires torch and diffusers.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import turns

TASKS = ["encode_17x256x256", "decode_17x256x256", "encode_1x256x256", "decode_1x256x256"]
TASKS += ["train_4x1x128x128", "train_1x9x128x128"]
LEARNING_RATE, KL = 1e-4, 1e-6
WEIGHTS = "weights.safetensors"
CONTESTANTS = ["vaejax", "diffusers", "torch.compile"]
Array = np.ndarray


def design(size: str):
    """Returns the design of a size."""
    from vaejax.config import schema
    from vaejax.models.wan import SIZES, WanDesign

    model = schema.defaults().model
    fixed = SIZES[size]
    model.update({"size": size, "latent_channels": fixed["latent_channels"]})
    model.spatial_factor = fixed["patch"] * 2 ** (len(fixed["encoder_widths"]) - 1)
    return WanDesign.of(model)


def inputs(task: str, size: str) -> tuple[str, Array, Array]:
    """Returns what to do, pixels (B, T, H, W, C) in [-1, 1], and latents, or their noise, (b, t, h, w, c)."""
    what, _, shape = task.partition("_")
    *batch, t, h, w = map(int, shape.split("x"))
    d, rng = design(size), np.random.default_rng(0)
    x = rng.uniform(-1, 1, (*(batch or [1]), t, h, w, d.pixel_channels)).astype(np.float32)
    s = d.spatial_factor
    z = rng.standard_normal((len(x), 1 + (t - 1) // d.temporal_factor, h // s, w // s, d.latent_channels))
    return what, x, z.astype(np.float32)


def diffusers_model(size: str):
    """Returns an autoencoder of diffusers of this size, with random weights."""
    import torch
    from diffusers import AutoencoderKLWan

    d = design(size)
    torch.manual_seed(0)
    pixels = d.pixel_channels * d.patch**2
    return AutoencoderKLWan(
        base_dim=d.encoder_widths[0],
        decoder_base_dim=d.decoder_widths[0],
        z_dim=d.latent_channels,
        dim_mult=[width // d.encoder_widths[0] for width in d.encoder_widths],
        num_res_blocks=d.encoder_blocks,
        temperal_downsample=list(d.temporal_downsample),
        is_residual=d.averaging,
        in_channels=pixels,
        out_channels=pixels,
        patch_size=d.patch if d.patch > 1 else None,
        scale_factor_spatial=d.spatial_factor,
    )


def of_diffusers(task: str, size: str, folder: pathlib.Path, compiled: bool) -> Callable[[], Array]:
    """Returns diffusers' function for a task: it gives the result, or the loss of an update."""
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as many as XLA's thread pool has
    what, *arrays = inputs(task, size)
    x, z = (torch.tensor(a).permute(0, 4, 1, 2, 3).contiguous() for a in arrays)
    model = diffusers_model(size).eval()
    model.load_state_dict(load_file(folder / WEIGHTS))
    wrap = torch.compile if compiled else lambda f: f
    model.encoder, model.decoder = wrap(model.encoder), wrap(model.decoder)
    if what == "train":
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, fused=True)

        def update():
            optimizer.zero_grad()
            posterior = model.encode(x).latent_dist
            x_hat = model.decode(posterior.mean + posterior.std * z).sample
            kl = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar)
            loss = (x_hat - x).abs().mean() + KL * kl.mean()
            loss.backward()
            optimizer.step()
            return loss.detach().numpy()

        return update

    @torch.inference_mode()
    def run():
        y = model.encode(x).latent_dist.mean if what == "encode" else model.decode(z).sample
        return y.permute(0, 2, 3, 4, 1).numpy()

    return run


def of_vaejax(task: str, size: str, folder: pathlib.Path) -> Callable[[], Array]:
    """Returns our function for a task: it gives the result, or the loss of an update."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax.traverse_util import unflatten_dict
    from safetensors.numpy import load_file

    from vaejax.models import wan_names
    from vaejax.models.autoencoder import Architecture, Autoencoder

    what, x, z = inputs(task, size)
    d = design(size)
    model = Autoencoder(Architecture(d, d))
    paths = {wan_names.from_diffusers(name): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
    flat = {path: jnp.asarray(wan_names.from_torch(path, tensor)) for path, tensor in paths.items()}
    params = unflatten_dict(flat)
    del paths, flat
    if what == "train":
        optimizer = optax.adam(LEARNING_RATE)
        state = [params, optimizer.init(params)]

        def loss(params, x, z):
            posterior = model.apply({"params": params}, x, method="encode")
            latents = posterior.mean + jnp.exp(0.5 * posterior.log_variance) * z
            x_hat = model.apply({"params": params}, latents, method="decode")
            return jnp.abs(jnp.clip(x_hat, -1, 1) - x).mean() + KL * posterior.kl().mean()

        def step(params, moments, x, z):
            value, gradient = jax.value_and_grad(loss)(params, x, z)
            updates, moments = optimizer.update(gradient, moments)
            return optax.apply_updates(params, updates), moments, value

        step = jax.jit(step, donate_argnums=(0, 1))

        def update():
            *state[:], value = step(*state, x, z)
            jax.block_until_ready(state)
            return np.asarray(value)

        return update
    if what == "encode":
        run = jax.jit(lambda params: model.apply({"params": params}, x, method="encode").mean)
    else:
        run = jax.jit(lambda params: jnp.clip(model.apply({"params": params}, z, method="decode"), -1, 1))
    return lambda: np.asarray(run(params))


def work(contestant: str, task: str, size: str, folder: pathlib.Path) -> None:
    """Runs a task for every line on stdin, see `turns.serve`, and saves the result of the first time."""
    if contestant == "vaejax":
        run = of_vaejax(task, size, folder)
    else:
        run = of_diffusers(task, size, folder, compiled=contestant == "torch.compile")
    first = folder / f"{contestant}_{task}.npy"

    def once() -> None:
        y = run()
        if not first.exists():
            np.save(first, y)

    turns.serve(once)


def compete(task: str, names: list[str], args: argparse.Namespace, folder: pathlib.Path) -> dict:
    """Times all contestants in turn; returns their seconds, peak memory and largest difference."""
    contestants = {}
    for name in names:
        command = [sys.executable, __file__, f"--size={args.size}", f"--work={name}", f"--tasks={task}"]
        command += [f"--folder={folder}", f"--threads={args.threads}"]
        contestants[name] = turns.Contestant(command)
    once = {name: one.turn()[0] for name, one in contestants.items()}
    results = [np.load(folder / f"{name}_{task}.npy") for name in names]
    difference = max(float(np.abs(y - results[0]).max() / np.abs(results[0]).max()) for y in results)
    if not difference < 1e-4:
        sys.exit(f"{task}: the results differ by {difference:.1e}")
    found: dict = turns.compete(contestants, args.rounds)
    for name, one in contestants.items():
        one.end()
        found[name]["first_seconds"] = once[name]
    return found | {"difference": difference}


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="wan2.1")
    parser.add_argument("--tasks", nargs="*", default=TASKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--out", help="JSON file for all numbers")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-args.threads :])
        work(args.work, args.tasks[0], args.size, pathlib.Path(args.folder))
        return
    names = CONTESTANTS[: 3 if args.compile else 2]
    report = {"arguments": vars(args), "results": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        from safetensors.torch import save_file

        save_file(diffusers_model(args.size).state_dict(), folder / WEIGHTS)
        titles = [
            "task",
            "contestant",
            "seconds",
            "ratio",
            "CPU seconds",
            "ratio",
            "peak memory",
            "first time",
        ]
        print("|", " | ".join(titles), "|\n" + "|---" * len(titles) + "|")
        for task in args.tasks:
            found = report["results"][task] = compete(task, names, args, folder)
            for name in names:
                times = [found[name][what] for what in ("seconds", "cpu_seconds")]
                cells = [f"{t['median']:.2f} | {t['ratio']:.2f}x" for t in times]
                cells += [f"{found[name]['peak_gib']:.2f} GiB", f"{found[name]['first_seconds']:.1f} s"]
                print(f"| {task} | {name} |", " | ".join(cells), "|", flush=True)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
