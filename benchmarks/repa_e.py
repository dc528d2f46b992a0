"""REPA-E at the demo's scale: a diffusion transformer trains beside the VAE, and shapes its latents.

    python -m benchmarks.repa_e --out=DIR [--steps=300] [--weights 0 0.5 1.5]

Run it in a checkout. After REPA-E (arXiv 2504.10483), the transformer learns from the VAE's latents, whose
gradient stops there. Its middle block is projected to the features of an image network, and only this
alignment reaches the encoder, through the transformer, whose parameters are fixed in that pass. Every weight
of the alignment, 0 included, has three training seeds. Each VAE is scored by PSNR, and by a fresh diffusion
probe. Prints a table; DIR/repa_e.json has all numbers. Rerun the same command to continue. Requires scipy.
"""

import argparse
import functools
import pathlib
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.field_notes import generators, tiles
from benchmarks.field_notes.verdict import paired
from vaejax import cli, files
from vaejax.codec.load import TrainedVAE, fingerprint
from vaejax.codec.save import save_vae
from vaejax.config import check
from vaejax.config.schema import Config, DataConfig
from vaejax.configs import demo
from vaejax.data import pipeline, sources
from vaejax.data.bucket import Bucket, parse_buckets
from vaejax.evaluate import metrics
from vaejax.evaluate.codecs.vae import VaeCodec
from vaejax.losses.alignment import Alignment
from vaejax.losses.objective import Objective
from vaejax.models.autoencoder import Architecture, Autoencoder
from vaejax.models.ema import ema
from vaejax.models.families import architecture_of_run
from vaejax.models.pixels import from_uint8
from vaejax.networks import efficientnet
from vaejax.probe.dit import DiT
from vaejax.train import optimizer as optim
from vaejax.train import step as steps

SEEDS = (0, 1, 2)
SIDE, BATCH = 64, 8
DEPTH, ALIGNED = 4, 2  # blocks of the transformer, and the one whose tokens are aligned
SHARE = 0.5  # weight of the alignment in the transformer's own loss
DECAY = 0.98


class State(NamedTuple):
    """Parameters and optimizers of the VAE, and of the transformer with its projection."""

    step: jax.Array
    vae: dict
    average: dict
    vae_optimizer: optax.OptState
    transformer: dict
    transformer_optimizer: optax.OptState


class Projection(nn.Module):
    """The MLP between the transformer's tokens and the features of an image network."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens (..., d) to (..., features)."""
        x = nn.silu(nn.Dense(4 * x.shape[-1], name="in")(x))
        return nn.Dense(self.features, name="out")(x)


class Both(NamedTuple):
    """What trains together.

    Attributes:
      model: the VAE.
      objective: its loss.
      transformer: the diffusion transformer.
      projection: the projection of its tokens.
      alignment: finds the features of an image.
    """

    model: Autoencoder
    objective: Objective
    transformer: DiT
    projection: Projection
    alignment: Alignment

    def velocity_and_distance(
        self, params: dict, z: jax.Array, features: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The flow-matching loss of latents (b, 1, h, w, c), and 1 - the cosine of tokens and features.

        Latents are normalized over the batch, as REPA-E's batch normalization does.
        """
        key_noise, key_time = jax.random.split(key)
        axes = (0, 1, 2, 3)
        z = (z - z.mean(axes)) / (z.std(axes) + 1e-5)
        noise, times = jax.random.normal(key_noise, z.shape), jax.random.uniform(key_time, (len(z),))
        t = times[:, None, None, None, None]
        name = f"block_{ALIGNED - 1}"
        velocity, seen = self.transformer.apply(
            {"params": params["transformer"]},
            (1 - t) * z + t * noise,
            times,
            capture_intermediates=lambda module, _: module.name == name,
        )
        tokens = seen["intermediates"][name]["__call__"][0]
        projected = self.projection.apply({"params": params["projection"]}, tokens)
        target = features.reshape(projected.shape)
        cosine = (projected * target).sum(-1) / (
            jnp.linalg.norm(projected, axis=-1) * jnp.linalg.norm(target, axis=-1) + 1e-6
        )
        return jnp.square(velocity - (noise - z)).mean(), (1 - cosine).mean()


def update(
    state: State,
    frames: jax.Array,
    network: dict,
    key: jax.Array,
    *,
    both: Both,
    optimizers: tuple[optax.GradientTransformation, optax.GradientTransformation],
    weight: float,
) -> tuple[State, dict[str, jax.Array]]:
    """One update of the VAE and of the transformer, from uint8 images (B, 1, H, W, 3)."""
    key_vae, key_flow = jax.random.split(jax.random.fold_in(key, state.step))
    x = from_uint8(frames)
    h, w = (n // both.model.architecture.spatial_factor for n in frames.shape[2:4])
    features = both.alignment.features(network, x, (1, h, w))

    def vae_loss(params: dict) -> tuple[jax.Array, tuple]:
        out = steps.reconstruct(both.model, both.objective, params, x, key_vae)
        loss, terms = both.objective(x, out, {}, key_vae)
        fixed = jax.lax.stop_gradient(state.transformer)
        _, distance = both.velocity_and_distance(fixed, out.z, features, key_flow)
        return loss + weight * both.objective.scale(x.shape[1:]) * distance, (out.z, terms["nll"], distance)

    gradient, (z, nll, distance) = jax.grad(vae_loss, has_aux=True)(state.vae)

    def transformer_loss(params: dict) -> jax.Array:
        error, apart = both.velocity_and_distance(params, jax.lax.stop_gradient(z), features, key_flow)
        return error + SHARE * apart

    error, transformer_gradient = jax.value_and_grad(transformer_loss)(state.transformer)
    vae_optimizer, transformer_optimizer = optimizers
    change, vae_state = vae_optimizer.update(gradient, state.vae_optimizer, state.vae)
    moved, transformer_state = transformer_optimizer.update(
        transformer_gradient, state.transformer_optimizer, state.transformer
    )
    vae = optax.apply_updates(state.vae, change)
    average = ema(state.average, vae, DECAY, state.step)
    new = State(
        state.step + 1,
        vae,
        average,
        vae_state,
        optax.apply_updates(state.transformer, moved),
        transformer_state,
    )
    return new, {"nll": nll, "distance": distance, "transformer": error}


def train(
    folder: pathlib.Path,
    config: Config,
    data: DataConfig,
    bucket: Bucket,
    count: int,
    seed: int,
    weight: float,
) -> None:
    """Trains a VAE beside a transformer, and writes it as a folder that vaejax loads."""
    architecture = architecture_of_run(config, None)
    both = Both(
        Autoencoder(architecture),
        Objective.of(config),
        DiT(128, DEPTH, 4),
        Projection(112),
        Alignment("efficientnet", 0.0, 0.0),
    )
    key = jax.random.key(seed)
    clip = jnp.zeros((1, 1, SIDE, SIDE, 3))
    params = {
        "autoencoder": both.model.init(key, jnp.zeros(architecture.example_shape), key)["params"],
        "likelihood": {"log_scale": jnp.zeros(())},
    }
    z = jnp.zeros((1, *architecture.latent_shape(*clip.shape[1:4])))
    further = {
        "transformer": both.transformer.init(key, z, jnp.zeros(1))["params"],
        "projection": both.projection.init(key, jnp.zeros((1, 1, 1, 128)))["params"],
    }
    optimizers = optim.optimizer(config.optim, count), optax.adam(1e-3)
    state = State(
        jnp.zeros((), jnp.int32),
        params,
        jax.tree.map(jnp.copy, params),
        optimizers[0].init(params),
        further,
        optimizers[1].init(further),
    )
    network = efficientnet.load()
    step_of = functools.partial(update, both=both, optimizers=optimizers, weight=weight)
    compiled = jax.jit(step_of, donate_argnums=0)
    with pipeline.train_stream(sources.open_sources(data), [bucket], data, seed=seed) as stream:
        for step in range(count):
            frames = next(stream).batches[bucket.name].frames
            state, terms = compiled(state, frames, network, key)
            if (step + 1) % max(1, count // 6) == 0:
                shown = ", ".join(f"{name} {float(value):.3f}" for name, value in terms.items())
                print(f"{folder.name}: update {step + 1}/{count}, {shown}", file=sys.stderr)
    average = jax.tree.map(np.asarray, state.average["autoencoder"])
    with files.atomic_folder(folder) as unfinished:
        save_vae(unfinished, trained_vae(architecture, average, count))


def trained_vae(architecture: Architecture, params: dict, count: int) -> TrainedVAE:
    """A VAE without statistics of its latents, which the probe measures itself."""
    return TrainedVAE("", architecture, params, None, None, count, fingerprint(params))


def main() -> int:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.repa_e", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--out", required=True, help="folder for models and results")
    parser.add_argument("--steps", type=cli.at_least(1), default=300, help="updates (default: 300)")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[0.0, 0.5, 1.5], help="weights, the first to compare with"
    )
    args = parser.parse_args()
    return cli.run(lambda: measure(args))


def measure(args: argparse.Namespace) -> None:
    """Trains, scores and prints."""
    out = cli.made_folder(args.out)
    tiles.write(out / "tiles")
    settings = demo.get_config()
    settings.loss.weights.perceptual = settings.loss.weights.adversarial = 0.0
    settings.data.media = str(out / "tiles")
    settings.data.sources = {}
    settings.data.zoom, settings.data.holdout = 1.5, generators.HOLDOUT
    settings.data.buckets = {f"image_{SIDE}x{SIDE}": {"batch": BATCH}}
    config = check(settings)
    (bucket,) = parse_buckets(config.data.buckets, 8, 4)
    judge, rows = generators.judge(out / "tiles", SIDE), {}
    held_out = pipeline.eval_batches(sources.open_sources(config.data), bucket, config.data, 64, 64)
    photos = next(held_out).frames
    for weight in args.weights:
        rows[weight] = []
        for seed in SEEDS:
            folder = out / f"{weight:g}-{seed}-{args.steps}"
            if not folder.exists():
                train(folder, config, config.data, bucket, args.steps, seed, weight)
            kept = out / f"{folder.name}.json"
            if not kept.exists():
                codec = VaeCodec.open(str(folder))
                scores, _ = judge.score(judge.latents(codec), codec.decode, SEEDS)
                decoded = jnp.asarray(codec.decode(codec.encode(photos)))
                psnr = float(metrics.psnr(from_uint8(photos), decoded).mean())
                files.write_json(kept, {"psnr": psnr, "kernel": scores["kernel"], "floor": scores["floor"]})
            rows[weight].append(files.read_json(kept))
    print("| weight | PSNR, dB | kernel distance | against the first weight |\n|---|---|---|---|")
    first = [row["kernel"]["mean"] for row in rows[args.weights[0]]]
    for weight, found in rows.items():
        psnr, kernel = ([row[key] for row in found] for key in ("psnr", "kernel"))
        means = [one["mean"] for one in kernel]
        against = (
            "" if weight == args.weights[0] else paired("kernel distance", "", means, first, -1).sentence()
        )
        print(f"| {weight:g} | {np.mean(psnr):.2f} | {np.mean(means):.4f} | {against} |")
    files.write_json(out / "repa_e.json", {str(weight): found for weight, found in rows.items()})


if __name__ == "__main__":
    sys.exit(main())
