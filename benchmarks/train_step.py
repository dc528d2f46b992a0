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
import torch.nn.functional as F
from flax.traverse_util import flatten_dict, unflatten_dict

from vaejax.config import schema
from vaejax.losses.objective import Objective, Outputs
from vaejax.models.autoencoder import LOG_VARIANCE_INIT, SIZES, Architecture, Autoencoder
from vaejax.models.pixels import from_uint8
from vaejax.models.posterior import LOG_VARIANCE_RANGE
from vaejax.train import step as train_step
from vaejax.train.state import TrainState

LEARNING_RATE, CLIP, EMA_DECAY = 1e-4, 0.1, 0.999
Frames = dict[str, np.ndarray]


class TorchAutoencoder(torch.nn.Module):
    """`vaejax.models.autoencoder.Autoencoder` with its default options, as a PyTorch user would write it.

    Attributes:
      planar_images: use conv2d for images, with the kernel summed over time, as in vaejax; otherwise conv3d.
      layout: memory format of activations.
    """

    def __init__(self, architecture: Architecture, params: dict, layout: torch.memory_format):
        super().__init__()
        self.a, self.layout, self.planar_images = architecture, layout, True
        self.values = torch.nn.ParameterDict()
        for path, value in flatten_dict(params, sep="/").items():
            value = torch.tensor(np.asarray(value))
            if value.dim() == 5:
                value = value.permute(4, 3, 0, 1, 2).contiguous(memory_format=layout)
            self.values[path] = torch.nn.Parameter(value)
        self.haar = {}

    def conv(self, name: str, x: torch.Tensor, strides=(1, 1, 1), last: int = 0) -> torch.Tensor:
        """`CausalConv`, on (B, C, T, H, W)."""
        kernel, bias = self.values[f"{name}/kernel"], self.values[f"{name}/bias"]
        if f"{name}/scale" in self.values:
            kernel = kernel * self.values[f"{name}/scale"][:, None, None, None]
            energy = kernel.square().sum(dim=(1, 2, 3, 4), keepdim=True)
            kernel = kernel * (self.values[f"{name}/gain"] * torch.rsqrt(energy + 1e-8))
        kernel, bias = kernel[-last:], bias[-last:]
        padding = [k // 2 if s == 1 else 0 for k, s in zip(kernel.shape[3:], strides[1:], strict=True)]
        if x.shape[2] == 1 and self.planar_images:
            image, kernel = x[:, :, 0], kernel.sum(dim=2)
            if self.layout == torch.channels_last_3d:  # strides of one frame do not show the layout
                image, kernel = (a.contiguous(memory_format=torch.channels_last) for a in (image, kernel))
            return F.conv2d(image, kernel, bias, strides[1:], padding)[:, :, None]
        if kernel.shape[2] > 1:
            x = torch.cat([x[:, :, :1]] * (kernel.shape[2] - 1) + [x], dim=2)
        return F.conv3d(x, kernel, bias, strides, (0, *padding))

    def block(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """`ResidualBlock`."""
        return x + self.conv(f"{name}/conv_1", F.silu(self.conv(f"{name}/conv_0", F.silu(x))))

    def downsample(self, name: str, x: torch.Tensor, features: int, strides, shortcut=True) -> torch.Tensor:
        """`Downsample`."""
        st, s, _ = strides
        y = self.conv(f"{name}/conv", x, strides)
        if not shortcut:
            return y
        means = space_to_depth(x, s)
        if st > 1:
            tail = means[:, :, 1:].unflatten(2, (-1, st)).mean(dim=3)
            means = torch.cat([means[:, :, :1], tail], dim=2)
        return y + average_channels(means, features)

    def upsample(self, name: str, x: torch.Tensor, features: int, strides, shortcut=True) -> torch.Tensor:
        """`Upsample`."""
        st, s, _ = strides
        phases = st * s * s * features
        last = phases // st if x.shape[2] == 1 else phases
        y = self.conv(f"{name}/conv", x, last=last)
        if shortcut:
            y = y + average_channels(x, phases)[:, -last:]
        if st > 1 and last == phases:
            y = y.unflatten(1, (st, -1)).movedim(1, 3).flatten(2, 3)[:, :, st - 1 :]
        return depth_to_space(y, s)

    def forward(self, x: torch.Tensor, noise: torch.Tensor):
        """Maps pixels (B, 3, T, H, W) to their reconstruction, the mean and the log-variance."""
        a, lowest = self.a, len(self.a.strides)
        block = (a.temporal_factor, a.spatial_factor, a.spatial_factor)
        linear = self.downsample("encoder/linear", x, a.latent_channels, block, shortcut=False)
        y = self.mix(space_to_depth(x, a.stem_factor), transpose=False).contiguous(memory_format=self.layout)
        y = self.conv("encoder/conv_in", y)
        for level in range(lowest + 1):
            if level:
                y = self.downsample(f"encoder/down_{level}", y, a.width(level), a.strides[level - 1])
            for i in range(a.encoder_blocks):
                y = self.block(f"encoder/level_{level}_block_{i}", y)
        mean, log_variance = self.conv("encoder/conv_out", y).chunk(2, dim=1)
        mean = linear + mean
        log_variance = (log_variance + LOG_VARIANCE_INIT).clamp(*LOG_VARIANCE_RANGE)
        z = mean + torch.exp(0.5 * log_variance) * noise
        linear = self.upsample("decoder/linear", z, 3, block, shortcut=False)
        y = self.conv("decoder/conv_in", z)
        for level in range(lowest, -1, -1):
            for i in range(a.decoder_blocks):
                y = self.block(f"decoder/level_{level}_block_{i}", y)
            if level:
                y = self.upsample(f"decoder/up_{level}", y, a.width(level - 1), a.strides[level - 1])
        y = self.mix(self.conv("decoder/conv_out", y), transpose=True)
        return linear + depth_to_space(y, a.stem_factor), mean, log_variance

    def mix(self, x: torch.Tensor, transpose: bool) -> torch.Tensor:
        """Applies the Haar transform to the pixels of a patch, or its inverse."""
        rows = torch.ones(1, 1)
        while rows.shape[0] < self.a.stem_factor:
            low, high = torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, -1.0]])
            rows = torch.cat([torch.kron(rows, low), torch.kron(torch.eye(rows.shape[0]), high)]) / math.sqrt(
                2
            )
        matrix = torch.kron(rows, rows)
        matrix = matrix.T if transpose else matrix
        return torch.einsum("pq,bqcthw->bpcthw", matrix, x.unflatten(1, (matrix.shape[0], -1))).flatten(1, 2)


def average_channels(x: torch.Tensor, features: int) -> torch.Tensor:
    """`resample.average_channels`."""
    common = math.lcm(x.shape[1], features)
    x = torch.cat([x] * (common // x.shape[1]), dim=1)
    return x.unflatten(1, (-1, features)).mean(dim=1)


def space_to_depth(x: torch.Tensor, factor: int) -> torch.Tensor:
    """`resample.space_to_depth`."""
    x = x.unflatten(4, (-1, factor)).unflatten(3, (-1, factor))  # B C T h f w f
    return x.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)


def depth_to_space(x: torch.Tensor, factor: int) -> torch.Tensor:
    """`resample.depth_to_space`."""
    x = x.unflatten(1, (factor, factor, -1))  # B f f C T h w
    return x.permute(0, 3, 4, 5, 1, 6, 2).flatten(5, 6).flatten(3, 4)


def torch_loss(model: TorchAutoencoder, log_scale, frames, noise, objective: Objective) -> torch.Tensor:
    """Returns the loss of uint8 (B, T, H, W, 3), like `Objective`."""
    x = (frames.float() / 127.5 - 1).permute(0, 4, 1, 2, 3)
    x_hat, mean, log_variance = model(x, noise)
    nll = ((x - x_hat).abs() * torch.exp(-log_scale) + log_scale + math.log(2)).mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
    per_pixel = objective.weights["reconstruction"] * nll + objective.weights["kl"] * kl.sum() / x.numel()
    return per_pixel * objective.scale(tuple(frames.shape[1:]))


class TorchTrainer:
    """One update in PyTorch: fused Adam, multi-tensor moving average, clipping unit by unit."""

    def __init__(self, model: TorchAutoencoder, objective: Objective, wrap: Callable, planar_images=True):
        self.model, self.objective = model, objective
        model.planar_images = planar_images
        self.log_scale = torch.nn.Parameter(torch.zeros(()))
        self.params = [*model.parameters(), self.log_scale]
        self.average = [p.detach().clone() for p in self.params]
        self.optimizer = torch.optim.Adam(self.params, LEARNING_RATE, fused=True)
        self.clipped = [p for name, p in model.values.items() if is_clipped(name)]
        self.loss = wrap(torch_loss)
        self.clip = wrap(clip_gradients)

    def gradients(self, batches: Frames) -> None:
        """Accumulates the gradients of all batches."""
        for frames in batches.values():
            shape = self.model.a.latent_shape(*frames.shape[1:4])
            noise = torch.randn(frames.shape[0], *shape).permute(0, 4, 1, 2, 3)
            self.loss(self.model, self.log_scale, torch.from_numpy(frames), noise, self.objective).backward()

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
    return not name.startswith("decoder/conv_out") and name.split("/")[-1] not in ("scale", "gain")


class JaxTrainer:
    """One update in vaejax, compiled as one program."""

    def __init__(self, model: Autoencoder, params: dict, objective: Objective):
        self.model, self.objective = model, objective

        def mask(params):
            flat = flatten_dict(params["autoencoder"], sep="/")
            names = {name: is_clipped(name) for name in flat}
            return {"autoencoder": unflatten_dict(names, sep="/"), "likelihood": {"log_scale": False}}

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


def check(
    model: Autoencoder, params: dict, torch_model: TorchAutoencoder, objective, batches: Frames
) -> dict:
    """Compares output, loss and gradients; exits if they differ by 1e-4 of the largest element or more."""
    key, differences = jax.random.key(1), {}
    for name, frames in batches.items():
        frames = frames[:1]
        x = from_uint8(jnp.asarray(frames))

        def loss(params, x=x):
            x_hat, posterior = model.apply({"params": params}, x, key)
            out = Outputs(x_hat, posterior, posterior.mean, jnp.zeros(()), jnp.zeros(()))
            return objective(x, out, {}, key)[0], x_hat

        (value, x_hat), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        shape = (1, *model.architecture.latent_shape(*frames.shape[1:4]))
        noise = torch.tensor(np.asarray(jax.random.normal(key, shape))).permute(0, 4, 1, 2, 3)
        torch_model.zero_grad()
        their_value = torch_loss(torch_model, torch.zeros(()), torch.from_numpy(frames), noise, objective)
        their_value.backward()
        with torch.no_grad():
            their_x_hat = torch_model((torch.from_numpy(frames) / 127.5 - 1).permute(0, 4, 1, 2, 3), noise)[0]
        found = {"loss": relative(their_value.item(), float(value))}
        found["output"] = relative(their_x_hat.permute(0, 2, 3, 4, 1).numpy(), np.asarray(x_hat))
        errors, largest = [], max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradients))
        for path, g in flatten_dict(gradients, sep="/").items():
            theirs = torch_model.values[path].grad
            theirs = torch.zeros(()) if theirs is None else theirs
            theirs = theirs.permute(2, 3, 4, 1, 0) if theirs.dim() == 5 else theirs
            errors.append(float(np.abs(theirs.numpy() - np.asarray(g)).max()) / largest)
        found["gradients"] = max(errors)
        for what, difference in found.items():
            if not difference < 1e-4:
                sys.exit(f"{name}: the {what} of the two networks differ by {difference:.1e}")
        differences[name] = found
    torch_model.zero_grad()
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
    model, objective = Autoencoder(Architecture.of(config.model)), Objective.of(config)
    key = jax.random.key(0)
    init = jax.jit(model.init)(key, jnp.zeros((1, 5, 32, 32, 3)), key)["params"]
    # Kernels and gains start at 0, which would hide most of the network from the comparison.
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(key, p.shape), init)

    def torch_model(layout=torch.contiguous_format):
        return TorchAutoencoder(model.architecture, params, layout)

    compiled = functools.partial(torch.compile, mode=args.torch_mode)
    differences = check(model, params, torch_model(), objective, batches)
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
        last = torch.channels_last_3d
        trainers = {
            "vaejax": JaxTrainer(model, params, objective),
            "torch eager": TorchTrainer(torch_model(), objective, lambda f: f),
            "torch.compile": TorchTrainer(torch_model(), objective, compiled),
            "torch.compile, channels_last": TorchTrainer(torch_model(last), objective, compiled),
        }
        if task == "images":
            trainers["torch.compile, conv3d"] = TorchTrainer(
                torch_model(), objective, compiled, planar_images=False
            )
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
