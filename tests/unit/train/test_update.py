import gc
import threading

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.support import losses
from tests.support.models import SMALLEST, architecture
from vaejax.config import schema as config
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.losses.corruption import Corruption
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding
from vaejax.runtime.watchdog import Watchdog
from vaejax.train import optimizer as optim
from vaejax.train import state as train_state
from vaejax.train import step as steps
from vaejax.train.programs import Phase, Programs
from vaejax.train.update import Update, reason


def test_a_compilation_names_its_reason():
    nothing, lpips = Phase(False, False), Phase(True, False)
    both = Phase(True, True)
    assert reason(None, both, 0) == "first update"
    assert reason(nothing, lpips, 650) == "from update 650: perceptual"
    assert reason(nothing, both, 650) == "from update 650: perceptual, discriminators"
    assert reason(lpips, both, 700) == "from update 700: discriminators"
    assert reason(both, lpips, 600) == "back at update 600"


def setup(**more):
    """An update whose discriminators begin with update 2, a state, and batches."""
    mesh = sharding.make_mesh(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    adversary = losses.adversary(start=2)
    model = Autoencoder(architecture(**SMALLEST))
    settings = config.defaults().optim
    optimizer = optim.optimizer(settings, 10)
    programs = Programs(
        train_state.shapes(model, optimizer, adversary, mesh),
        mesh,
        model,
        losses.objective({"reconstruction": 1.0, "adversarial": 0.1}),
        adversary,
        optimizer,
        optim.clipping(settings),
        0.9,
        {},
    )
    frames = np.random.default_rng(0).integers(256, size=(8, 1, 16, 16, 3), dtype=np.uint8)
    update = Update(programs, [Bucket(1, 16, 16, 8)], seed=0, **more)
    state = train_state.create(model, optimizer, adversary, mesh, 0)
    return update, state, {"image_16x16": Batch(frames, range(8), [], [])}


@pytest.mark.variants
def test_programs_of_a_later_term_are_compiled_while_earlier_updates_run(capsys):
    def trained(steps):
        update, state, batches = setup(steps=steps)
        names = []
        for step in range(4):
            update.prepare(step, Watchdog(0))
            names.append({thread.name for thread in threading.enumerate()})
            state, _ = update(state, batches)
        return jax.device_get(state), names, capsys.readouterr().err

    state, names, printed = trained(steps=4)
    assert ["compile ahead" in each for each in names] == [False, True, False, False]
    assert printed.count("compiling the update") == 1  # the first
    assert "from update 2: discriminators: compiled while training\n" in printed
    at_once, names, printed = trained(steps=2)  # a run so short never needs them
    assert not any("compile ahead" in each for each in names)
    assert printed.count("compiling the update") == 2
    jax.tree.map(np.testing.assert_array_equal, state, at_once)


@pytest.mark.variants  # collecting garbage at every step takes long
def test_a_phase_leaves_no_program_on_the_device_and_can_come_back():
    update, state, batches = setup()
    there, judged = {}, []

    class Counting(Watchdog):
        def begin(self, name, step, patient=False):
            gc.collect()
            there.setdefault(name, []).append(len(jax.devices()[0].client.live_executables()))

    for step in (0, 1, 2, 3, 0):
        update.prepare(step, Counting(0))
        state, terms = update(state, batches)
        judged.append("accuracy_image" in terms["all"])
    assert judged == [False, False, True, True, False]
    begun = there["compiling the update"]
    assert len(begun) == 3 and len(set(begun)) == 1, there


@pytest.mark.parametrize("frames", [1, 5])
def test_the_token_learns_from_hidden_latents_only(frames):
    model = Autoencoder(architecture(**SMALLEST))
    x = np.random.default_rng(0).uniform(-1, 1, (2, frames, 16, 16, 3)).astype(np.float32)
    key = jax.random.key(0)
    params = {
        "autoencoder": model.init(key, x, key)["params"],
        "likelihood": {"log_scale": jax.numpy.zeros(())},
    }
    params["corruption"] = {"token": jax.numpy.ones(model.architecture.latent_channels)}

    def error(params, seed, **corruption):
        objective = losses.objective(corruption=Corruption(**corruption))
        out = steps.reconstruct(model, objective, params, x, jax.random.key(seed))
        return ((out.x_hat - x) ** 2).mean()

    gradient = jax.jit(jax.grad(error), static_argnames=("blocks", "future"))
    for corruption in ({"blocks": 1.0}, {"future": 1.0}):
        learned = gradient(params, 1, **corruption)["corruption"]["token"]
        assert (np.abs(learned).max() > 0) == ("blocks" in corruption or frames > 1)
        np.testing.assert_array_equal(learned, gradient(params, 1, **corruption)["corruption"]["token"])
