"""A run starts from a model, trains one half of it, or distills a half from a teacher."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.models import SMALL, SMALLEST, architecture, random_parameters
from tests.support.small_run import BUCKET, small_config
from vaejax.codec.load import TrainedVAE, fingerprint, load_vae
from vaejax.codec.save import save_vae
from vaejax.data.pipeline import Batch
from vaejax.errors import InputError
from vaejax.losses.distillation import agreement
from vaejax.losses.objective import LIKELIHOODS
from vaejax.models.autoencoder import Autoencoder
from vaejax.models.families import architecture_of_run
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import flops
from vaejax.runtime.watchdog import Watchdog
from vaejax.train import initial
from vaejax.train.setup import Setup
from vaejax.train.step import reconstruct
from vaejax.train.update import Update

MEAN, STD = np.linspace(-1, 1, 4).astype(np.float32), np.linspace(0.5, 2, 4).astype(np.float32)
DECODER = {"optim.train": ("decoder",), "init": "PATH"}


def trained(**options) -> TrainedVAE:
    """A model with random parameters and latent statistics."""
    model = Autoencoder(architecture(**(SMALLEST | options)))
    clip = jax.ShapeDtypeStruct(model.architecture.example_shape, jnp.float32)
    params = jax.tree.map(np.asarray, random_parameters(model, clip, jax.random.key(0)))
    return TrainedVAE("PATH", model.architecture, params, MEAN, STD, 7, fingerprint(params), -2.0)


def scaled(params):
    """The parameters times 1.1, as arrays; NumPy would turn those without axes into numbers."""
    return jax.tree.map(lambda x: np.asarray(1.1 * x, np.float32), params)


def setup_of(setup, known, **changes) -> Setup:
    """The setup of a run from `known`, with the opened photos of `setup`."""
    config = small_config("photos", **changes)
    return dataclasses.replace(setup, config=config, known=known)


def trees(state) -> dict:
    return jax.tree.map(np.asarray, {"params": state.params, "ema": state.ema, "frozen": state.frozen})


def updated(setup, steps=2):
    """The state at the start and after some updates on noise, and the metrics of the last update."""
    state = initial.start_from(setup.known, setup.initialize(), setup.config)
    before = trees(state)
    update = Update(setup.programs, setup.buckets, seed=0)
    frames = np.random.default_rng(0).integers(256, size=(8, 1, 32, 32, 3), dtype=np.uint8)
    for step in range(steps):
        update.prepare(step, Watchdog(0))
        state, terms = update(state, {BUCKET: Batch(frames, range(8), [], [])})
    return before, state, terms


def equal(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), one, other)))


def test_a_frozen_encoder_keeps_its_bits_and_has_no_gradients_moments_or_averages(setup):
    known = trained()
    before, state, terms = updated(setup_of(setup, known, **DECODER))
    assert equal(state.frozen, {"encoder": known.params["encoder"]})
    assert equal(before["params"]["autoencoder"], {"decoder": known.params["decoder"]})
    assert before["params"]["likelihood"]["log_scale"] == before["ema"]["likelihood"]["log_scale"] == -2
    assert set(state.params["autoencoder"]) == set(state.ema["autoencoder"]) == {"decoder"}
    assert not equal(state.params["autoencoder"]["decoder"], known.params["decoder"])
    assert terms["all"]["finite"]
    whole = state.whole(state.params)["autoencoder"]
    assert jax.tree.structure(whole) == jax.tree.structure(known.params)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(known.params["decoder"])) + 1  # and the log-scale
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim or leaf.size > 1)
    scalars = sum(1 for leaf in jax.tree.leaves(state.params) if not leaf.ndim)
    assert moments == 2 * (numbers - scalars)


def test_a_frozen_decoder_is_not_trained_but_passes_gradients_on(setup):
    known = trained()
    _, state, _ = updated(setup_of(setup, known, **{**DECODER, "optim.train": ("encoder",)}))
    assert equal(state.frozen, {"decoder": known.params["decoder"]})
    assert not equal(state.params["autoencoder"]["encoder"], known.params["encoder"])


def test_training_the_decoder_alone_costs_one_encoder_pass_and_three_of_the_decoder(setup):
    known = trained()
    model, x = Autoencoder(known.architecture), jnp.zeros((8, 1, 32, 32, 3))
    variables = {"params": known.params}
    encode = flops.count(jax.make_jaxpr(lambda x: model.apply(variables, x, method="encode"))(x))
    z = jnp.zeros((8, *known.architecture.latent_shape(1, 32, 32)))
    decode = flops.count(jax.make_jaxpr(lambda z: model.apply(variables, z, method="decode"))(z))

    def counted(**changes):
        programs = setup_of(setup, known, **{**DECODER, **changes}).programs
        return programs.model_flops(programs.phase(0), setup.buckets[0])

    # The gradients of the latents, the first input of the decoder, are not needed.
    assert encode + 2 * decode < counted() <= encode + 3 * decode
    assert counted(**{"optim.train": ("encoder", "decoder")}) > counted() + 0.9 * encode


def test_the_anchor_is_a_squared_distance_in_standard_deviations_of_the_channels(setup):
    known = trained()
    programs = setup_of(setup, known, **{"init": "PATH", "loss.weights.anchor": 1.0}).programs
    x = jax.random.uniform(jax.random.key(1), (2, 1, 32, 32, 3), minval=-1)

    def outputs(halves):
        params = {"autoencoder": halves, "likelihood": {"log_scale": jnp.zeros(())}}
        args = (params, x, jax.random.key(0), {}, programs.reference, programs.networks)
        return reconstruct(programs.model, programs.objective, *args)

    there = outputs(known.params)
    assert there.terms["anchor"] == 0
    moved = outputs(known.params | {"encoder": scaled(known.params["encoder"])})
    distance = np.asarray(moved.posterior.mean, np.float64) - there.posterior.mean
    np.testing.assert_allclose(moved.terms["anchor"], np.mean((distance / STD) ** 2), rtol=1e-5)


def test_a_student_decoder_learns_from_its_teacher_beside_the_teachers_encoder(setup):
    known = trained(decoder_blocks=2)
    distills = setup_of(
        setup,
        known,
        **{
            "optim.train": ("decoder",),
            "teacher": "PATH",
            "loss.weights.teacher": 1.0,
            "loss.weights.features": 1.0,
            "model.decoder_blocks": 1,
        },
    )
    assert distills.programs.model.architecture.encoder == known.architecture.encoder
    assert distills.programs.model.architecture.decoder.decoder_blocks == 1
    before, state, terms = updated(distills)
    assert equal(state.frozen, {"encoder": known.params["encoder"]})
    assert before["params"]["likelihood"]["log_scale"] == 0  # a student starts from scratch
    levels = {level for level, _ in distills.programs.reference.pairs}
    assert set(state.params["projections"]) == levels == {"level_0", "level_1"}
    assert terms[BUCKET]["teacher"] > 0 and terms[BUCKET]["features"] > 0
    assert not equal(before["params"]["projections"], state.params["projections"])


@pytest.mark.parametrize("student", ["encoder", "decoder"])
def test_the_half_of_a_teacher_computes_as_the_configuration_says(student):
    known = architecture(**(SMALL | {"dtype": "float32"}))
    changes = {"model.dtype": "bfloat16", "model.remat": (0, 1), "optim.train": (student,), "teacher": "PATH"}
    deeper = small_config(
        "photos", **changes, **{f"model.{k}": v for k, v in SMALL.items()}, **{"model.temporal_factor": 4}
    )
    now = architecture_of_run(deeper, known)
    kept = "encoder" if student == "decoder" else "decoder"
    assert getattr(now, kept) == dataclasses.replace(getattr(known, kept), dtype="bfloat16", remat=(0, 1))
    assert now.encoder.dtype == now.decoder.dtype == "bfloat16"


def test_distance_to_the_teacher_is_zero_only_for_the_teacher_itself(setup):
    known = trained()
    reference_setup = setup_of(
        setup,
        known,
        **{
            "optim.train": ("decoder",),
            "teacher": "PATH",
            "loss.weights.teacher": 1.0,
            "loss.weights.features": 1.0,
        },
    )
    programs = reference_setup.programs
    identity = {
        level: {"kernel": jnp.eye(one["kernel"][0])}
        for level, one in programs.auxiliary["projections"].items()
    }
    params = {
        "autoencoder": {"decoder": known.params["decoder"]},
        "likelihood": {"log_scale": jnp.float32(-1.0)},
        "projections": identity,
    }
    x = jax.random.uniform(jax.random.key(1), (2, 1, 32, 32, 3), minval=-1)
    frozen = {"encoder": known.params["encoder"]}

    def outputs(params):
        args = (params, x, jax.random.key(0), frozen, programs.reference, programs.networks)
        return reconstruct(programs.model, programs.objective, *args)

    same = outputs(params)
    np.testing.assert_allclose([same.terms[name] for name in ("teacher", "features")], 0, atol=1e-6)
    params["autoencoder"]["decoder"] = scaled(known.params["decoder"])
    other = outputs(params)
    assert other.terms["features"] > 1e-3
    assert programs.objective.likelihood == "gaussian"
    error = np.square(np.asarray(other.x_hat, np.float64) - same.x_hat).mean()
    np.testing.assert_allclose(other.terms["teacher"], error / (2 * np.exp(-2)), rtol=1e-5)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_pixels_and_teacher_pull_alike_but_only_pixels_move_the_scale(likelihood):
    nll, rng = LIKELIHOODS[likelihood], np.random.default_rng(0)
    target, x_hat = (jnp.asarray(rng.normal(size=(2, 1, 4, 4, 3)), jnp.float32) for _ in range(2))

    def teacher(x_hat, log_scale):
        return agreement(x_hat, target, log_scale, nll)

    def pixels(x_hat, log_scale):
        return nll(target, x_hat, log_scale).mean()

    pull, scale = jax.grad(teacher, (0, 1))(x_hat, jnp.float32(-1.5))
    np.testing.assert_allclose(pull, jax.grad(pixels)(x_hat, jnp.float32(-1.5)), rtol=1e-6)
    assert scale == 0


def test_a_run_keeps_the_model_that_it_starts_from(tmp_path):
    known = trained()
    (tmp_path / "export").mkdir()
    save_vae(tmp_path / "export", known)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    config = small_config("photos", init=str(tmp_path / "export"))
    kept = initial.keep(config, run, resumes=False)
    assert kept.fingerprint == known.fingerprint and kept.log_scale == -2.0
    (tmp_path / "export" / "config.json").unlink()
    resumed = initial.keep(config, run, resumes=True)  # the original is no longer needed
    assert equal(resumed.params, known.params)
    np.testing.assert_array_equal(load_vae(str(run.init)).std, STD)
    with pytest.raises(InputError, match=r"^init = .*export"):
        initial.keep(config, run, resumes=False)


def test_a_model_that_differs_is_named_with_both_values(tmp_path):
    known, other = trained(), architecture(**(SMALLEST | {"widths": (12,)}))
    with pytest.raises(InputError, match=r"^model\.widths = \(8,\), but the model in X has \(12,\);"):
        initial.check_same(other, small_config("photos", init="X"), "X")
    for changes in ({"model.family": ""}, {"model.remat": (0,), "model.dtype": "bfloat16"}):
        initial.check_same(known.architecture, small_config("photos", init="X", **changes), "X")
    teaches = {"teacher": "X", "optim.train": ("decoder",)}
    initial.check_same(other, small_config("photos", **teaches), "X")  # the student may differ
    with pytest.raises(InputError, match=r"latent_channels = 4 in one half, 8 in the other"):
        different = architecture(**(SMALLEST | {"latent_channels": 8}))
        initial.check_same(different, small_config("photos", **teaches), "X")


def test_a_run_with_more_channels_starts_from_the_widened_model(tmp_path):
    known = trained()
    (tmp_path / "export").mkdir()
    save_vae(tmp_path / "export", known)
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    changes = {"init": str(tmp_path / "export"), "model.pixel_channels": 4, "model.family": ""}
    kept = initial.keep(small_config("photos", **changes), run, resumes=False)
    assert kept.architecture == known.architecture.replace(pixel_channels=4)
    assert kept.fingerprint == fingerprint(kept.params) != known.fingerprint
    assert equal(kept.params, load_vae(str(run.init)).params)
    kernels = (vae.params["encoder"]["linear"]["conv"]["kernel"] for vae in (kept, known))
    np.testing.assert_array_equal(next(kernels)[..., :3, :], next(kernels))
    np.testing.assert_array_equal(kept.std, STD)


def test_the_anchor_of_a_widened_model_is_the_widened_start(setup):
    config = small_config("photos", **{"init": "PATH", "model.pixel_channels": 4, "loss.weights.anchor": 1.0})
    known = initial.widened(trained(), config)
    programs = dataclasses.replace(setup, config=config, known=known).programs
    x = jax.random.uniform(jax.random.key(1), (2, 1, 32, 32, 4), minval=-1)
    params = {"autoencoder": known.params, "likelihood": {"log_scale": jnp.zeros(())}}
    args = (params, x, jax.random.key(0), {}, programs.reference, programs.networks)
    assert reconstruct(programs.model, programs.objective, *args).terms["anchor"] == 0


def test_channels_are_added_to_whole_models_and_never_taken_away():
    known = trained().architecture
    wider = {"init": "X", "model.pixel_channels": 4}
    for changes in (wider, wider | {"model.family": ""}):
        initial.check_same(known, small_config("photos", **changes), "X")
        half = changes | {"optim.train": ("decoder",)}
        with pytest.raises(
            InputError, match=r"^optim\.train = \('decoder',\) with model\.pixel_channels = 4, "
        ):
            initial.check_same(known, small_config("photos", **half), "X")
    for changes in ({}, {"model.family": ""}):
        narrower = small_config("photos", init="X", **changes)
        with pytest.raises(InputError, match=r"pixel_channels = 3, but the model in X has 4; accepted: 4 or"):
            initial.check_same(known.replace(pixel_channels=4), narrower, "X")
    student = {"teacher": "X", "optim.train": ("decoder",), "model.pixel_channels": 4}
    with pytest.raises(InputError, match=r"^model\.pixel_channels = 4 in one half, 3 in the other"):
        initial.check_same(known, small_config("photos", **student), "X")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.train": ("decoder",)}, r"^optim\.train = \('decoder',\) without a model to start from"),
        ({"loss.weights.anchor": 1.0}, r"^loss\.weights\.anchor = 1\.0 without a model"),
        ({"eval.max_drift": 0.1}, r"^eval\.max_drift = 0\.1 without a model"),
        ({"teacher": "X"}, r"^optim\.train = \('encoder', 'decoder'\) with a teacher"),
        ({"teacher": "X", "init": "Y"}, r"^teacher = 'X' with init = 'Y'"),
        ({**DECODER, "loss.weights.anchor": 1.0}, r"a frozen encoder cannot drift"),
        ({**DECODER, "loss.weights.features": 1.0}, r"^loss\.weights\.features = 1\.0; accepted: 0, or with"),
        ({"model.family": ""}, r"^model\.family = '' without init"),
        (
            {
                **DECODER,
                "optim.train": ("encoder",),
                "loss.weights.adversarial": 0.1,
                "loss.adversarial.adaptive": 1e4,
            },
            r"^loss\.adversarial\.adaptive = 10000\.0 with optim\.train = \('encoder',\); accepted: 0",
        ),
    ],
)
def test_settings_that_need_a_model_to_start_from_are_refused_without_one(changes, message):
    with pytest.raises(InputError, match=message):
        small_config("photos", **changes)
