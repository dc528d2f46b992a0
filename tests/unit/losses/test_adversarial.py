"""The adversarial game against PyTorch and NumPy, and against itself played in two separate steps."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.support import losses
from tests.support.models import SMALLEST, randomized
from vaejax.config import schema as config
from vaejax.losses import adversarial
from vaejax.losses.adversarial import LOSSES
from vaejax.models.discriminator import power_iteration
from vaejax.models.pixels import from_uint8
from vaejax.train import optimizer as optim
from vaejax.train import state as train_state
from vaejax.train import step as train_step

FRAMES = np.random.default_rng(0).integers(256, size=(2, 5, 16, 16, 3), dtype=np.uint8)


def small_adversary(names=("image", "video"), **settings):
    settings = {"frames": 9, "pause_above": 1.0} | settings
    return losses.adversary(names, optimizer=optax.adam(1e-3, 0.5, 0.9), **settings)


@functools.cache
def initial(*names):
    """The initial states of discriminators."""
    return jax.jit(small_adversary(names).init)(jax.random.key(3))


def moved(adversary):
    """Discriminator states whose averages have moved away from their start."""
    states = initial(*adversary.discriminators)
    return {
        n: one.replace(real_mean=0.3 + one.real_mean, fake_mean=-0.2 + one.fake_mean)
        for n, one in states.items()
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_the_losses_are_those_of_torch(loss):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 3, 4)).astype(np.float32), rng.normal(size=(2, 3, 4)).astype(np.float32)
    r, g = torch.tensor(real), torch.tensor(fake)
    cross_entropy = f.binary_cross_entropy_with_logits
    two_sided = cross_entropy(r, torch.ones_like(r)) + cross_entropy(g, torch.zeros_like(g))
    expected = {
        "hinge": (f.relu(1 - r).mean() + f.relu(1 + g).mean(), -g.mean()),
        "logistic": (two_sided, -g.mean()),
        "non_saturating": (two_sided, cross_entropy(g, torch.ones_like(g))),
    }[loss]
    discriminator, generator = LOSSES[loss]
    np.testing.assert_allclose(discriminator(real, fake), expected[0], rtol=1e-5)
    np.testing.assert_allclose(generator(fake), expected[1], rtol=1e-5)


def test_lecam_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=20), rng.normal(size=20)
    expected = (np.maximum(real + 0.2, 0) ** 2).mean() + (np.maximum(0.3 - fake, 0) ** 2).mean()
    np.testing.assert_allclose(
        adversarial.lecam(real, fake, jnp.float32(0.3), jnp.float32(-0.2)), expected, rtol=1e-5
    )


@pytest.mark.parametrize("temporal", [False, True])
def test_the_discriminator_and_its_r1_are_those_of_torch(temporal):
    """The patch discriminator rebuilt in PyTorch, spectral norm by singular value decomposition."""
    torch = pytest.importorskip("torch")
    module = losses.discriminator("video" if temporal else "image", width=4)
    x = np.random.default_rng(0).normal(size=(2, 5, 32, 24, 3)).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    spectral = jax.lax.fori_loop(
        0, 500, lambda _, vectors: power_iteration(variables["params"], vectors), variables["spectral"]
    )

    @jax.jit
    def judge(x):
        return module.apply({"params": variables["params"], "spectral": spectral}, x)

    a = torch.tensor(x.transpose(0, 4, 1, 2, 3).copy(), requires_grad=True)
    y = a
    for name, stride in (("down_0", 2), ("down_1", 2), ("down_2", 2), ("middle", 1), ("logit", 1)):
        kernel = torch.tensor(np.asarray(variables["params"][name]["kernel"]))
        kernel = kernel / torch.linalg.svdvals(kernel.reshape(-1, kernel.shape[-1]))[0]
        strides = (2 if temporal and stride == 2 and y.shape[2] > 2 else 1, stride, stride)
        sizes = kernel.shape[:3]
        pad = [
            n for size, s in zip(sizes[:0:-1], strides[:0:-1], strict=True) for n in ((size - s) // 2,) * 2
        ]
        y = torch.nn.functional.pad(y, (*pad, sizes[0] // 2, sizes[0] // 2), mode="replicate")
        y = torch.nn.functional.conv3d(y, kernel.permute(4, 3, 0, 1, 2), stride=strides)
        if name != "logit":
            y = torch.nn.functional.leaky_relu(y, 0.2)
    np.testing.assert_allclose(judge(x), y[:, 0].detach().numpy(), rtol=1e-3, atol=1e-4)
    (gradient,) = torch.autograd.grad(y.sum(), a)
    expected = gradient.square().sum().item() / y.numel()
    found = jax.jit(lambda x: adversarial.r1(judge, x))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_power_iteration_finds_the_largest_singular_value():
    kernel = jax.random.normal(jax.random.key(0), (3, 3, 3, 4, 6))
    start = {"left": jnp.ones(108) / 108**0.5, "right": jnp.ones(6) / 6**0.5}
    largest = np.linalg.svd(np.asarray(kernel).reshape(108, 6))[1][0]

    def value(found):
        return found["left"] @ kernel.reshape(108, 6) @ found["right"]

    at_once = value(power_iteration({"kernel": kernel}, start, squarings=8))
    np.testing.assert_allclose(at_once, largest, rtol=1e-5)
    found = start
    for _ in range(2**4 + 1):
        found = power_iteration({"kernel": kernel}, found)
    assert value(found) < largest * (1 - 1e-5)  # 17 steps do not converge
    few = power_iteration({"kernel": kernel}, start, squarings=4)
    np.testing.assert_allclose(found["right"], few["right"], atol=1e-5)
    np.testing.assert_allclose(found["left"], few["left"], atol=1e-5)


@pytest.mark.parametrize(
    ("names", "loss", "penalty"),
    [
        (["video"], "hinge", 0.5),
        pytest.param(["image", "video"], "hinge", 0.5, marks=pytest.mark.variants),
        pytest.param(["image", "video"], "logistic", 0.0, marks=pytest.mark.variants),
        pytest.param(["image", "video"], "non_saturating", 0.0, marks=pytest.mark.variants),
    ],
)
def test_one_forward_pass_gives_the_gradients_of_two_plain_steps(names, loss, penalty):
    adversary = small_adversary(names, loss=loss, lecam=0.1, r1=penalty)
    states = moved(adversary)
    x = from_uint8(jnp.array(FRAMES))
    x_hat = x + 0.3 * jax.random.normal(jax.random.key(1), x.shape)
    dx_hat, gradients, stats, terms = jax.jit(adversary.gradients)(states, x, x_hat, jax.random.key(2))
    discriminator_loss, generator_loss = LOSSES[loss]

    @functools.partial(jax.jit, static_argnums=0)
    def judge(name, params, x):
        return adversary.discriminators[name].apply({"params": params, "spectral": states[name].spectral}, x)

    def plain(params, name):
        real, fake = judge(name, params, x), judge(name, params, jax.lax.stop_gradient(x_hat))
        value = discriminator_loss(real, fake)
        value += 0.1 * jnp.square(jax.nn.relu(real + 0.2)).mean()
        value += 0.1 * jnp.square(jax.nn.relu(0.3 - fake)).mean()
        if not penalty:
            return value
        gradient = jax.grad(lambda x: judge(name, params, x).sum())(x)
        return value + penalty / 2 * jnp.square(gradient).sum() / real.size

    for name, one in states.items():
        expected = jax.jit(jax.grad(plain), static_argnums=1)(one.params, name)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max()),
            gradients[name],
            expected,
        )
        real, fake = judge(name, one.params, x), judge(name, one.params, x_hat)
        np.testing.assert_allclose(
            [stats[name].real, stats[name].fake, stats[name].count],
            [real.mean(), fake.mean(), 1],
            rtol=1e-4,
        )
        right = ((real > 0).mean() + (fake < 0).mean()) / 2
        np.testing.assert_allclose(stats[name].accuracy, right, rtol=1e-5)

    def generator(x_hat):
        return sum(generator_loss(judge(n, one.params, x_hat)) for n, one in states.items())

    expected = jax.jit(jax.grad(generator))(x_hat)
    np.testing.assert_allclose(dx_hat, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    total = sum(terms[f"adversarial_{name}"] for name in names)
    np.testing.assert_allclose(total, jax.jit(generator)(x_hat), rtol=1e-4)


@pytest.fixture(scope="module")
def trained():
    """A model, its adversary and everything that an update needs."""
    settings = config.defaults()
    adversary = small_adversary(("image",), start=2, ramp=4)
    model, parameters = randomized(**SMALLEST)
    optimizer = optim.optimizer(settings.optim, 10)
    params = {"autoencoder": parameters, "likelihood": {"log_scale": jnp.zeros(())}}
    discriminators = initial(*adversary.discriminators)
    state = train_state.TrainState(jnp.int32(0), params, params, optimizer.init(params), discriminators)
    return model, adversary, jax.device_get(state)


@pytest.fixture(scope="module")
def gradients(trained):
    """Gives the generator's gradients at an update, and the terms, by the kind of adversarial weight."""
    model, adversary, state = trained
    adaptive = dataclasses.replace(adversary, adaptive=1e4)
    adversaries = {"none": None, "constant": adversary, "adaptive": adaptive}
    objective = losses.objective(
        {"reconstruction": 1.0, "kl": 1e-6, "adversarial": 0.5}, normalization="mean"
    )

    @functools.partial(jax.jit, static_argnums=0)
    def of(kind, state):
        adversary = adversaries[kind]
        gathered = train_step.zeros(state, adversary)
        key = jax.random.key(5)
        return train_step.bucket_gradients(
            state, gathered, FRAMES, key, {}, 1.0, model=model, objective=objective, adversary=adversary
        )

    def at(kind, step):
        gathered, terms = of(kind, state.replace(step=jnp.int32(step)))
        return gathered.generator, terms

    return at


@pytest.mark.variants
def test_the_generator_gets_the_gradient_of_the_whole_loss(trained, gradients):
    """Against one loss written plainly, of the same noise, differentiated as a whole."""
    model, adversary, state = trained
    objective = losses.objective(normalization="mean")
    key = jax.random.key(5)
    for number in (2, 5, 16, 16):
        key = jax.random.fold_in(key, number)
    key = jax.random.split(key, 3)[0]
    x = from_uint8(jnp.array(FRAMES))

    def whole(params):
        out = train_step.reconstruct(model, objective, params, x, key)
        value = objective(x, out, {}, key)[0]
        for name, module in adversary.discriminators.items():
            one = state.discriminators[name]
            logits = module.apply({"params": one.params, "spectral": one.spectral}, out.x_hat)
            value += 0.25 * 0.5 * -logits.mean()  # a quarter of the ramp, times the weight
        return value

    expected = jax.jit(jax.grad(whole))(state.params)
    found, _ = gradients("constant", 2)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=1e-3, atol=1e-4 * max(1e-4, np.abs(b).max()), err_msg=jax.tree_util.keystr(path)
        )


def test_before_its_start_the_adversary_learns_but_does_not_count(trained, gradients):
    _, adversary, _ = trained
    before, _ = gradients("constant", 1)
    without, _ = gradients("none", 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), before, without)
    assert (
        not adversary.is_training(1)
        and adversary.is_training(2)
        and small_adversary(start=9, warmup=4).is_training(5)
    )
    np.testing.assert_allclose(
        [adversary.weight_fraction(s) for s in jnp.arange(8)], [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    )


def test_the_adaptive_weight_is_the_ratio_of_gradients_at_the_last_layer(gradients):
    def at_last_layer(tree):
        return np.asarray(tree["autoencoder"]["decoder"]["conv_out"]["kernel"])

    late = 9
    without, _ = gradients("none", late)
    constant, _ = gradients("constant", late)
    adaptive, terms = gradients("adaptive", late)
    reconstruction = at_last_layer(without)
    alone = 2 * (at_last_layer(constant) - reconstruction)  # its weight was 0.5
    expected = np.linalg.norm(reconstruction) / (np.linalg.norm(alone) + 1e-4)
    np.testing.assert_allclose(terms["adaptive_weight"], expected, rtol=1e-3)
    np.testing.assert_allclose(
        at_last_layer(adaptive), reconstruction + 0.5 * expected * alone, rtol=2e-3, atol=1e-6
    )
    capped = adversarial.adaptive_weight(reconstruction, alone, 0.1)
    np.testing.assert_allclose(capped, 0.1, rtol=1e-6)


def test_a_discriminator_that_is_too_good_waits_and_one_not_asked_stays_as_it_is():
    adversary = small_adversary(names=("image",), pause_above=0.9)
    one = initial("image")["image"]
    update = jax.jit(adversary.update)
    gradient = jax.tree.map(jnp.ones_like, one.params)
    seen = adversarial.LogitStats(*map(jnp.float32, (1.0, -1.0, 0.8, 1.0)))
    learned = update(one, gradient, seen)
    assert not np.array_equal(learned.params["logit"]["kernel"], one.params["logit"]["kernel"])
    np.testing.assert_allclose(learned.accuracy, 0.95 * 0.5 + 0.05 * 0.8, rtol=1e-5)
    np.testing.assert_allclose(learned.real_mean, 0.9, rtol=1e-5)  # the first update counts for much

    good = one.replace(accuracy=jnp.float32(0.95))
    waited = update(good, gradient, seen)
    for field in ("params", "spectral", "optimizer"):
        jax.tree.map(np.testing.assert_array_equal, getattr(waited, field), getattr(good, field))
    assert waited.accuracy < 0.95  # it gets its turn again

    unused = adversarial.LogitStats(*map(jnp.float32, (0.0, 0.0, 0.0, 0.0)))
    jax.tree.map(np.testing.assert_array_equal, update(one, gradient, unused), one)


@pytest.mark.parametrize(
    ("kind", "temporal"),
    [
        ("patch", False),
        ("unet", True),
        pytest.param("patch", True, marks=pytest.mark.variants),
        pytest.param("unet", False, marks=pytest.mark.variants),
    ],
)
def test_a_frame_is_judged_alone_and_a_clip_by_its_motion(kind, temporal):
    module = losses.discriminator("video" if temporal else "image", kind=kind, width=4)
    x = jax.random.normal(jax.random.key(0), (1, 5, 32, 40, 3))
    variables = jax.jit(module.init)(jax.random.key(1), x)
    logits = jax.jit(module.apply)(variables, x)
    assert logits.shape[2:] == ((32, 40) if kind == "unet" else (4, 5))
    gradient = jax.jit(jax.grad(lambda x: module.apply(variables, x)[:, 0].sum()))(x)
    touched = np.abs(gradient).max((0, 2, 3, 4)) > 0
    assert touched[0] and touched[2] == temporal


@pytest.mark.parametrize("name", ["image", "video"])
def test_discriminators_see_every_channel(name):
    """The gradient at a reconstruction that differs in alpha alone is not zero in alpha."""
    adversary = small_adversary([name], pixel_channels=4)
    states = jax.jit(adversary.init)(jax.random.key(0))
    x = np.random.default_rng(0).uniform(-1, 1, (1, 5, 16, 16, 4)).astype(np.float32)
    gradients = jax.jit(functools.partial(adversary.gradients, key=jax.random.key(1)))
    dx_hat, *_ = gradients(states, x, np.where([False, False, False, True], -x, x))
    assert dx_hat.shape == x.shape and np.all(np.abs(dx_hat).max((0, 1, 2, 3)) > 0)


def test_a_generator_is_told_apart_after_some_updates():
    """The game is played the right way round: the discriminator learns to tell noise from photos."""
    adversary = small_adversary(names=("image",))
    states = initial("image")
    rng = jax.random.key(1)

    @jax.jit
    def update(one, key):
        x = jnp.broadcast_to(jnp.linspace(-1, 1, 32)[:, None, None], (8, 1, 32, 32, 1)) + jnp.zeros(3)
        x_hat = x + 0.3 * jax.random.normal(key, x.shape)
        _, gradients, stats, terms = adversary.gradients({"image": one}, x, x_hat, key)
        return adversary.update(one, gradients["image"], stats["image"]), terms

    one, first = states["image"], None
    for key in jax.random.split(rng, 40):
        one, terms = update(one, key)
        first = first or terms
    assert one.accuracy > 0.8
    assert terms["discriminator_image"] < 0.6 * first["discriminator_image"]
    assert terms["adversarial_image"] > first["adversarial_image"]


def test_the_cost_of_a_step_is_that_of_both_nets_counted_once(trained):
    model, adversary, state = trained
    x = from_uint8(jnp.array(FRAMES))
    objective = losses.objective({"reconstruction": 1.0, "kl": 1e-6, "adversarial": 0.5})

    def flops(f, *arguments):
        # As an accelerator would get it: a CPU's program has loops, whose bodies are counted once.
        return jax.jit(f).trace(*arguments).lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]

    gathered = train_step.zeros(state, adversary)
    step = flops(
        lambda s, g, frames: train_step.bucket_gradients(
            s, g, frames, jax.random.key(0), {}, 1.0, model=model, objective=objective, adversary=adversary
        ),
        state,
        gathered,
        FRAMES,
    )
    without = flops(
        lambda s, g, frames: train_step.bucket_gradients(
            s, g, frames, jax.random.key(0), {}, 1.0, model=model, objective=objective.without("adversarial")
        ),
        state,
        train_step.zeros(state, None),
        FRAMES,
    )

    def both_sides(params, x, x_hat):
        total = 0.0
        for name, module in adversary.discriminators.items():
            for side in (x, x_hat):
                variables = {"params": params[name], "spectral": state.discriminators[name].spectral}
                total += jax.nn.relu(1 + module.apply(variables, side)).mean()
        return total

    params = {name: one.params for name, one in state.discriminators.items()}
    discriminators = flops(jax.grad(both_sides, argnums=(0, 2)), params, x, x + 0.1)
    assert step <= 1.25 * (without + discriminators), step / (without + discriminators)


def test_discriminators_multiply_more_precisely_than_in_bfloat16():
    """Otherwise a TPU would round float32 to bfloat16 in every convolution, forward and backward."""
    adversary, x = small_adversary(), from_uint8(FRAMES)
    key = jax.random.key(0)
    traced = jax.jit(adversary.gradients).trace(initial("image", "video"), x, 0.9 * x, key)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) > 20
    assert all(len(re.findall(r"\bHIGH(?:EST)?\b", line)) == 2 for line in lines)
