"""One update of vaejax against the same network in PyTorch, eager and compiled, on this machine.

    python benchmarks/train_step.py --out=train_step.json

Both start from the same weights, and their outputs, losses and gradients are compared before anything is
timed. An update is the forward and backward pass of all its batches, adaptive gradient clipping, Adam and the
moving average. The contestants take turns, so that other work slows all alike, and ratios are medians over
rounds. Disturbed rounds are repeated: on a shared core OpenMP's barriers slow PyTorch several times over,
which would flatter vaejax. Requires `pip install torch==2.13.0`.
"""

import argparse
import functools
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from vaejax.config import schema
from vaejax.export import pytorch, torch_autoencoder
from vaejax.losses.objective import Objective, Outputs
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.models.families import architecture_of
from vaejax.models.pixels import from_uint8
from vaejax.models.vaejax import SIZES
from vaejax.train import step as train_step
from vaejax.train.state import TrainState

LEARNING_RATE, CLIP, EMA_DECAY = 1e-4, 0.1, 0.999
Frames = dict[str, np.ndarray]


def torch_model(model: Autoencoder, params: dict, layout=torch.contiguous_format) -> torch.nn.Module:
    """Returns the module of an export for PyTorch, with kernels in a memory format."""
    vae = torch_autoencoder.Autoencoder(pytorch.config_of(model.architecture))
    weights = pytorch.state_dict(params)
    vae.load_state_dict({name: torch.tensor(leaf) for name, leaf in weights.items()})
    return vae.to(memory_format=layout)


def reconstruct(vae: torch.nn.Module, x: torch.Tensor, noise: torch.Tensor):
    """Maps pixels (B, 3, T, H, W) to their reconstruction and the posterior."""
    if not vae.encoder.conv_in.weight.is_contiguous():
        x = x.contiguous(memory_format=torch.channels_last_3d)
    posterior = vae.encode(x).latent_dist
    return vae.decode(posterior.mean + posterior.std * noise).sample, posterior


def torch_loss(vae: torch.nn.Module, log_scale, frames, noise, objective: Objective) -> torch.Tensor:
    """Returns the loss of uint8 (B, T, H, W, 3), like `Objective`."""
    x = (frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)
    x_hat, posterior = reconstruct(vae, x, noise)
    nll = ((x - x_hat).abs() * torch.exp(-log_scale) + log_scale + math.log(2)).mean()
    kl = posterior.kl().sum() / x.numel()
    per_pixel = objective.weights["reconstruction"] * nll + objective.weights["kl"] * kl
    return per_pixel * objective.scale(tuple(frames.shape[1:]))


class TorchTrainer:
    """One update in PyTorch: fused Adam, multi-tensor moving average, clipping unit by unit."""

    def __init__(
        self, vae: torch.nn.Module, architecture: Architecture, objective: Objective, wrap: Callable
    ):
        self.vae, self.architecture, self.objective = vae, architecture, objective
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.params = [*vae.parameters(), self.log_scale]
        self.average = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.Adam(self.params, LEARNING_RATE, fused=True)
        self.clipped = [p for name, p in vae.named_parameters() if is_clipped(name)]
        self.loss = wrap(torch_loss)
        self.clip = wrap(clip_gradients)

    def gradients(self, batches: Frames) -> None:
        """Accumulates the gradients of all batches."""
        for frames in batches.values():
            shape = self.architecture.latent_shape(*frames.shape[1:4])
            noise = torch.randn(frames.shape[0], *shape).permute(0, 4, 1, 2, 3)
            self.loss(self.vae, self.log_scale, torch.from_numpy(frames), noise, self.objective).backward()

    def update(self, batches: Frames) -> None:
        """Runs one optimizer step."""
        self.optimizer.zero_grad()
        self.gradients(batches)
        with torch.no_grad():
            self.clip(self.clipped, [p.grad for p in self.clipped])
            self.optimizer.step()
            torch._foreach_lerp_(self.average, self.params, 1 - EMA_DECAY)


def clip_gradients(params: list[torch.Tensor], gradients: list[torch.Tensor]) -> None:
    """Applies `optax.adaptive_grad_clip` in place."""
    for p, g in zip(params, gradients, strict=True):
        dims = tuple(range(1, p.dim())) if p.dim() > 1 else ()
        norm = functools.partial(torch.linalg.vector_norm, dim=dims, keepdim=True) if dims else torch.abs
        g.mul_((CLIP * norm(p).clamp(min=1e-3) / norm(g).clamp(min=1e-6)).clamp(max=1))


def is_clipped(name: str) -> bool:
    """Whether vaejax clips a parameter: all but the last convolution, scales and gains."""
    return not name.startswith("decoder.conv_out") and name.split(".")[-1] not in ("scale", "gain")


class JaxTrainer:
    """One update in vaejax, compiled as one program."""

    def __init__(self, model: Autoencoder, params: dict, objective: Objective):
        self.model, self.objective = model, objective

        def mask(params):
            flat = flatten_dict(params["autoencoder"], sep=".")
            names = {name: is_clipped(name) for name in flat}
            return {"autoencoder": unflatten_dict(names, sep="."), "likelihood": {"log_scale": False}}

        clipping = optax.masked(optax.adaptive_grad_clip(CLIP), mask)
        optimizer = optax.chain(clipping, optax.adam(LEARNING_RATE))
        params = {"autoencoder": params, "likelihood": {"log_scale": jnp.zeros(())}}
        # Copies, because the state is donated and no buffer may be donated twice.
        params, average = (jax.tree.map(jnp.copy, params) for _ in range(2))
        self.state = TrainState(jnp.zeros((), jnp.int32), params, average, optimizer.init(params), {})

        def update(state, batches, key):
            gathered = train_step.zeros(state, None)
            for frames in batches.values():
                gathered, _ = train_step.bucket_gradients(
                    state, gathered, frames, key, {}, 1.0, model=model, objective=objective
                )
            return train_step.apply_gradients(
                state, gathered, optimizer=optimizer, clipping=clipping, ema_decay=EMA_DECAY
            )

        self.step = jax.jit(update, donate_argnums=0)
        self.key = jax.random.key(0)

    def update(self, batches: Frames) -> None:
        """Runs one step and waits for it."""
        self.state, norms = self.step(self.state, batches, self.key)
        jax.block_until_ready((self.state.params, norms))


def check(model: Autoencoder, params: dict, vae: torch.nn.Module, objective, batches: Frames) -> dict:
    """Compares output, loss and gradients; exits if they differ by 1e-4 of the largest element or more."""
    key, differences = jax.random.key(1), {}
    for name, frames in batches.items():
        frames = frames[:1]
        x = from_uint8(jnp.asarray(frames))

        def loss(params, x=x):
            x_hat, posterior = model.apply({"params": params}, x, key)
            out = Outputs(x_hat, posterior, posterior.mean, jnp.zeros(()), {})
            return objective(x, out, {}, key)[0], x_hat

        (value, x_hat), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        shape = (1, *model.architecture.latent_shape(*frames.shape[1:4]))
        noise = torch.tensor(np.asarray(jax.random.normal(key, shape))).permute(0, 4, 1, 2, 3)
        vae.zero_grad()
        their_value = torch_loss(vae, torch.zeros(()), torch.from_numpy(frames), noise, objective)
        their_value.backward()
        with torch.no_grad():
            their_x_hat, _ = reconstruct(vae, (torch.from_numpy(frames) / 127.5 - 1).movedim(-1, 1), noise)
        found = {"loss": relative(their_value.item(), float(value))}
        found["output"] = relative(their_x_hat.permute(0, 2, 3, 4, 1).numpy(), np.asarray(x_hat))
        errors, largest = [], max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
        parameters = dict(vae.named_parameters())
        for path, g in pytorch.state_dict(gradients).items():
            errors.append(float(np.abs(parameters[path].grad.numpy() - g).max()) / largest)
        found["gradients"] = max(errors)
        for what, difference in found.items():
            if not difference < 1e-4:
                sys.exit(f"{name}: the {what} of the two networks differ by {difference:.1e}")
        differences[name] = found
    vae.zero_grad()
    return differences


def relative(a, b) -> float:
    """Returns the largest difference relative to the largest element."""
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(b).max())


def busy_seconds() -> float:
    """Returns the CPU seconds of all processes since boot, or 0 if the system does not report them."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(n) for n in file.readline().split()[1:9]]
    except OSError:
        return 0.0
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def compete(contestants: dict[str, Callable[[], None]], rounds: int, patience: int) -> tuple[dict, int]:
    """Times every contestant once per round, after two updates to compile and warm up.

    Args:
      contestants: the functions to time.
      rounds: number of rounds to keep.
      patience: maximum number of rounds. Those in which other processes take over 5% of the CPU time are
        disturbed, and kept only if too few others exist.

    Returns:
      The seconds of every contestant in every kept round, and the number of disturbed rounds among them.
    """
    for run in contestants.values():
        run()
        run()
    kept = []
    for i in range(patience):
        seconds, others = {}, 0.0
        for name in list(contestants)[:: 1 if i % 2 else -1]:
            busy, own, start = busy_seconds(), time.process_time(), time.perf_counter()
            contestants[name]()
            seconds[name] = time.perf_counter() - start
            others += busy_seconds() - busy - (time.process_time() - own)
        disturbed = others > 0.05 * os.cpu_count() * sum(seconds.values())
        kept.append((disturbed, i, seconds))
        if sum(not d for d, *_ in kept) == rounds:
            break
    kept = sorted(kept, key=lambda k: k[:2])[:rounds]
    return {name: [s[name] for *_, s in kept] for name in contestants}, sum(d for d, *_ in kept)


def main() -> None:
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--images", default="8,1,128,128", help="B,T,H,W of the image batch")
    parser.add_argument("--videos", default="2,9,128,128", help="B,T,H,W of the video batch, T = 1 + 4k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--patience", type=int, default=30, help="maximum number of rounds, until enough are undisturbed"
    )
    parser.add_argument("--torch-mode", default="default", help="torch.compile's mode, such as max-autotune")
    parser.add_argument("--out", help="JSON file for all times and ratios")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)  # as many as XLA's thread pool has
    torch.manual_seed(0)

    rng = np.random.default_rng(0)
    shapes = {"images": args.images, "videos": args.videos}
    batches = {
        name: rng.integers(0, 256, (*map(int, shape.split(",")), 3), np.uint8)
        for name, shape in shapes.items()
    }
    config = schema.defaults()
    config.model.size = args.size
    model, objective = Autoencoder(architecture_of(config.model)), Objective.of(config)
    key = jax.random.key(0)
    init = jax.jit(model.init)(key, jnp.zeros((1, 5, 32, 32, 3)), key)["params"]
    # Kernels and gains start at 0, which would hide most of the network from the comparison.
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(key, p.shape), init)

    compiled = functools.partial(torch.compile, mode=args.torch_mode)
    differences = check(model, params, torch_model(model, params), objective, batches)
    print("largest differences:", json.dumps(differences))
    report = {
        "differences": differences,
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": threads},
        "versions": {"jax": jax.__version__, "torch": torch.__version__},
        "arguments": vars(args),
        "results": {},
    }
    tasks = {name: {name: frames} for name, frames in batches.items()} | {"both": batches}
    print(f"{'':8}{'contestant':30}{'ms':>9}{'vaejax is faster by':>22}")
    for task, chosen in tasks.items():
        trainers = {"vaejax": JaxTrainer(model, params, objective)}
        for name, wrap, layout in (
            ("torch eager", lambda f: f, torch.contiguous_format),
            ("torch.compile", compiled, torch.contiguous_format),
            ("torch.compile, channels_last", compiled, torch.channels_last_3d),
        ):
            vae = torch_model(model, params, layout)
            trainers[name] = TorchTrainer(vae, model.architecture, objective, wrap)
        contestants = {name: functools.partial(t.update, chosen) for name, t in trainers.items()}
        seconds, disturbed = compete(contestants, args.rounds, args.patience)
        report["results"][task] = {"disturbed_rounds": disturbed}
        for name, times in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(times, seconds["vaejax"], strict=True))
            median = statistics.median(times)
            report["results"][task][name] = {"seconds": times, "median": median, "ratio": ratio}
            print(f"{task:8}{name:30}{1e3 * median:9.1f}{ratio:21.2f}x", flush=True)
        if disturbed:
            print(f"{task:8}{disturbed} of {args.rounds} rounds were disturbed by other processes")
        torch._dynamo.reset()
    if args.out:
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)


if __name__ == "__main__":
    main()
