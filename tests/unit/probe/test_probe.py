"""The probe: its fits, its latents, its scores and its command."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from skimage import data
from sklearn.metrics import pairwise

from benchmarks import probe_order
from tests.support.models import random_parameters
from tests.unit.probe.test_dit import normal
from vaejax.data import sources
from vaejax.data.sampler import Sampler
from vaejax.errors import InputError, Stopped
from vaejax.evaluate.codecs.registry import open_codec
from vaejax.evaluate.features import Features
from vaejax.probe import __main__, command, dit, flow
from vaejax.probe.fit import fit, velocity
from vaejax.probe.latents import Latents
from vaejax.probe.presets import PRESETS
from vaejax.probe.samples import open_media
from vaejax.probe.score import Probe

TINY = dataclasses.replace(
    PRESETS["cpu"], width=16, depth=1, heads=2, steps=12, batch=8, warmup=2, train_samples=24, samples=9,
    solver_steps=2,
)  # fmt: skip


# Fits -------------------------------------------------------------------------------------------------------


def smooth_latents(count=64, classes=1):
    """Latents (count, 1, 8, 8, 2), nearly constant in space, at the level of their class or a random one."""
    rng = np.random.default_rng(0)
    labels = np.arange(count, dtype=np.int32) % classes
    level = 2.0 * labels - 1 if classes > 1 else rng.normal(size=count)
    z = level[:, None, None, None, None] + 0.1 * rng.normal(size=(count, 1, 8, 8, 2))
    return Latents.normalized(z[: count // 2], z[count // 2 :], labels[: count // 2], labels[count // 2 :])


def parameters_equal(one, other):
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    model, latents = dit.DiT(16, 1, 2), smooth_latents()
    one, again, other = (fit(model, latents, TINY, seed) for seed in (0, 0, 1))
    assert parameters_equal(one, again)
    assert not parameters_equal(one, other)


def test_a_fit_learns_more_than_the_normalization():
    latents = smooth_latents()
    model = dit.DiT(32, 1, 2)
    params = fit(model, latents, dataclasses.replace(TINY, steps=100, learning_rate=5e-3), 0)
    x = latents.held_out
    times = np.full(len(x), 0.5, np.float32)
    losses = jax.jit(functools.partial(flow.losses, velocity(model, params, latents.held_out_labels)))(
        x, normal(*x.shape), times
    )
    # Neighbors predict each value, so the loss is well below that of white noise.
    assert losses.mean() < 0.7 * flow.white_loss(0.5)


@pytest.mark.variants
def test_a_label_decides_what_is_generated():
    latents = smooth_latents(classes=2)
    model = dit.DiT(32, 1, 2, classes=2)
    params = fit(model, latents, dataclasses.replace(TINY, steps=100, learning_rate=5e-3), 0)
    noise = normal(8, 1, 8, 8, 2)
    means = [
        np.asarray(flow.solve(velocity(model, params, np.full(8, label)), noise, 8)).mean((1, 2, 3, 4))
        for label in (0, 1)
    ]
    assert means[0].max() < 0 < means[1].min()


# Latents ----------------------------------------------------------------------------------------------------


def test_latents_are_normalized_by_the_training_statistics_and_back():
    z = 3 + np.array([2.0, 0.5, 0.0]) * np.random.default_rng(0).normal(size=(40, 1, 4, 4, 3))
    latents = Latents.normalized(z[:30], z[30:], np.zeros(30), np.zeros(10))
    np.testing.assert_allclose(latents.train.mean((0, 1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(latents.train.std((0, 1, 2, 3)), [1, 1, 0], atol=1e-5)
    np.testing.assert_allclose(latents.held_out * latents.std + latents.mean, z[30:], atol=1e-5)
    np.testing.assert_allclose(latents.denormalize(latents.train), z[:30], atol=1e-5)


def test_mixed_latents_decode_equally_but_lose_their_spatial_structure():
    latents = smooth_latents()
    mixed, decode = probe_order.mix_positions(latents, lambda z: z)
    z, m = latents.denormalize(latents.train), mixed.denormalize(mixed.train)
    np.testing.assert_allclose(decode(m), z, atol=1e-4)
    np.testing.assert_allclose(np.square(m).sum((1, 2, 3)), np.square(z).sum((1, 2, 3)), rtol=1e-4)

    def neighbours(z):
        return np.corrcoef(z[:, :, :, 1:].ravel(), z[:, :, :, :-1].ravel())[0, 1]

    assert neighbours(z) > 0.9 and abs(neighbours(m)) < 0.3


def test_noise_of_equal_variance_doubles_the_variance_and_is_decoded():
    latents = smooth_latents()
    noisy, decode = probe_order.add_noise(latents, lambda z: z)
    np.testing.assert_allclose(np.square(noisy.std / latents.std), 2, rtol=0.1)
    z = noisy.denormalize(noisy.train)
    np.testing.assert_array_equal(decode(z), z)
    added = z - latents.denormalize(latents.train)
    np.testing.assert_allclose(added.std((0, 1, 2, 3)), latents.std, rtol=0.1)


# The probe --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six photos of scikit-image in two folders."""
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("astronaut", "coffee", "rocket", "chelsea", "hubble_deep_field", "retina")):
        part = folder / ("things" if i % 2 else "places")
        part.mkdir(exist_ok=True)
        Image.fromarray(getattr(data, name)()[:256, :256]).save(part / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def probe(photos):
    return Probe(open_media(str(photos), TINY), TINY, Features())


@pytest.fixture(scope="module")
def linear(probe):
    return open_codec("linear", samples=(frames for frames, _ in probe.media.batches("train", 24)))


@pytest.fixture(scope="module")
def latents(probe, linear):
    return probe.latents(linear)


@pytest.mark.variants
def test_scores_are_listed_by_seed_and_reproducible(probe, linear, latents):
    scores, shown = probe.score(latents, linear.decode, [0, 1])
    assert len(set(scores["kernel"]["seeds"])) == len(set(scores["loss"]["seeds"])) == 2
    assert scores["loss"]["mean"] == np.mean(scores["loss"]["seeds"])
    assert scores["loss"]["spread"] == np.std(scores["loss"]["seeds"], ddof=1)
    np.testing.assert_allclose(
        scores["explained"]["seeds"], 1 - np.array(scores["loss"]["seeds"]) / scores["white_loss"], rtol=1e-12
    )
    assert {name: x.shape for name, x in shown.items()} == dict.fromkeys(
        ("real, held out", "decoded training latents", "generated"), (8, 1, 64, 64, 3)
    )
    again, shown_again = probe.score(latents, linear.decode, [0])
    for name in ("kernel", "frechet", "loss", "explained"):
        assert again[name]["seeds"][0] == scores[name]["seeds"][0]
    np.testing.assert_array_equal(shown["generated"], shown_again["generated"])


def test_generated_latents_and_the_loss_do_not_depend_on_the_batch_size(probe, latents):
    params = random_parameters(dit.DiT(16, 2, 2), latents.train[:1], jnp.zeros(1), gain=1.0)
    other = Probe(probe.media, dataclasses.replace(TINY, batch=5), Features())
    losses = [p._validate(params, latents) for p in (probe, other)]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    np.testing.assert_allclose(*(p._generate(params, latents, 0) for p in (probe, other)), atol=1e-4)


@pytest.mark.variants
def test_the_floor_is_scikit_learns_kernel_distance_of_decoded_training_latents(probe, linear, latents):
    scores, _ = probe.score(latents, linear.decode, [0])
    decoded = linear.decode(latents.denormalize(latents.train[: TINY.samples]))
    real = np.concatenate([frames for frames, _ in probe.media.batches("eval", TINY.samples)])
    x, y = (Features().images(frames).astype(np.float64) for frames in (decoded, real))
    xx, yy, xy = (pairwise.polynomial_kernel(*pair, coef0=1) for pair in ((x, x), (y, y), (x, y)))
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (xx, yy)]
    assert scores["floor"]["kernel"] == pytest.approx(sum(within) - 2 * xy.mean(), rel=1e-6)


def test_no_held_out_photo_is_a_training_photo(probe):
    names = {}
    for split in ("train", "eval"):
        order = probe.media._samplers[split]
        names[split] = {order[i].name.rpartition("@")[0] for i in range(24)}
    assert names["train"] and names["eval"] and not names["train"] & names["eval"]


def test_held_out_photos_are_cropped_like_training_photos(probe, photos):
    """Reconstructions are scored on center crops, but no generated sample looks like one."""
    order, held_out = probe.media._samplers["eval"], open_media(str(photos), TINY)
    middle = Sampler(sources.open_sources(held_out.data), held_out.bucket, "eval", held_out.data)
    count = next(i for i in range(1, 24) if middle[i].name == middle[0].name)  # the photos repeat
    np.testing.assert_array_equal(order[0].frames, middle[count].frames)
    assert not np.array_equal(order[0].frames, middle[0].frames)


def test_a_probe_can_be_stopped_while_it_generates_and_validates(probe, latents):
    asked = [False, True]
    params = random_parameters(dit.DiT(16, 2, 2), latents.train[:1], jnp.zeros(1), gain=1.0)
    deaf = Probe(probe.media, TINY, Features())
    for work in (lambda: deaf._generate(params, latents, 0), lambda: deaf._validate(params, latents)):
        answers = iter(asked)
        deaf._stopping = lambda answers=answers: next(answers)
        with pytest.raises(Stopped):
            work()


def test_a_clip_of_few_frames_is_one_sample(probe):
    frames = np.random.default_rng(0).integers(256, size=(3, 5, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        probe._extract(frames)["efficientnet"], probe._extract(frames[:, 2:3])["efficientnet"]
    )


def test_folders_are_classes(photos, tmp_path):
    media = open_media(str(photos), TINY, labels=True)
    assert media.classes == ["places", "things"]
    _, labels = next(media.batches("train", 16))
    assert set(labels) == {0, 1}
    Image.fromarray(data.astronaut()).save(tmp_path / "loose.png")
    Image.fromarray(data.astronaut()).save(tmp_path / "loose_too.png")
    with pytest.raises(InputError, match="loose"):
        open_media(str(tmp_path), TINY, labels=True)


# The command ------------------------------------------------------------------------------------------------


def flags(budget):
    return [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(budget).items()]


@pytest.mark.variants
def test_the_command_is_reproducible_except_for_its_duration(photos, tmp_path, capsys):
    found = []
    for out in (tmp_path / "one", tmp_path / "two"):
        arguments = ["--checkpoint=linear", f"--data={photos}", "--seeds=2", f"--out={out}", *flags(TINY)]
        assert __main__.main(arguments) == 0
        found.append(json.loads((out / "probe.json").read_text()))
        assert found[-1].pop("time")["seconds"] > 0
        assert np.asarray(Image.open(out / "samples.png")).std() > 10
    assert found[0] == found[1]
    assert (tmp_path / "one/samples.png").read_bytes() == (tmp_path / "two/samples.png").read_bytes()
    assert found[0]["settings"]["budget"] == dataclasses.asdict(TINY)
    out = capsys.readouterr().out
    assert f"{found[0]['kernel']['mean']:.4f} ± {found[0]['kernel']['spread']:.4f}" in out
    assert out.splitlines()[-1].startswith("next: python -m vaejax.evaluate --compare linear ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=nowhere"], "nowhere: no such folder; accepted: a folder with photos or clips"),
        (["--bucket=image_64"], "--bucket=image_64: not a valid bucket name"),
        (["--bucket=image_640x640"], "--bucket=image_640x640: no training sample fits"),
        (["--bucket=video_9x64x64"], "--bucket=video_9x64x64: no training sample fits; there are no clips"),
        (["--bucket=image_60x64"], "linear: a clip is 1x60x64 (T, H, W)"),
        (["--patch=3"], "patch = 3: latents are 8x8"),
        (["--width=30"], "width = 30"),
        (["--attention=none"], "attention = none; accepted: auto, full, factorised"),
        (["--checkpoint=identity"], "identity: no latents to learn"),
        (["--checkpoint=nowhere"], "nowhere"),
        (["--inception=nowhere.pth"], "Inception weights: nowhere.pth"),
    ],
)
def test_a_user_error_is_one_line(photos, tmp_path, capsys, arguments, message):
    given = ["--checkpoint=linear", f"--data={photos}", f"--out={tmp_path}", *flags(TINY), *arguments]
    assert __main__.main(given) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "accepted: " in lines[0]


def test_every_field_of_a_preset_has_a_flag():
    assert set(PRESETS) == {"cpu", "gpu", "standard"}
    for preset in PRESETS.values():
        chosen = __main__._parser().parse_args(["--checkpoint=c", "--data=d", "--out=o", *flags(preset)])
        assert command.budget(chosen) == preset


def test_a_single_seed_has_no_spread():
    assert command.mean_and_spread({"mean": 0.5, "spread": float("nan"), "seeds": [0.5]}, 2) == "0.50"
    assert command.mean_and_spread({"mean": 0.5, "spread": 0.1, "seeds": [0.4, 0.6]}, 2) == "0.50 ± 0.10"


def test_the_summary_of_one_seed_says_that_it_has_no_spread():
    one = {"mean": 0.5, "spread": float("nan"), "seeds": [0.5]}
    names = ("kernel", "frechet", "loss", "explained")
    results = dict.fromkeys(names, one) | {"white_loss": 2.0, "floor": {"kernel": 0.1, "frechet": 0.2}}
    results |= {"settings": {"checkpoint": "linear", "preset": "cpu"}, "time": {"seconds": 62}}
    text = command.summary(results)
    assert "linear in 1m02s: preset cpu, 1 seed (one seed has no spread)" in text
    assert "±" not in text and "nan" not in text


def test_a_run_is_exported_next():
    flags = ["--checkpoint=runs/my run/checkpoints/5", "--data=d", "--out=o"]
    options = __main__._parser().parse_args(flags)
    settings = {"codec": {"kind": "vaejax"}}
    line = command._next_command(options, settings)
    assert line == "python -m vaejax.export 'runs/my run/checkpoints/5' 'exports/my run'"
