import gc

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from tests.support import losses
from tests.support.models import SMALLEST, architecture
from vaejax.config import schema as config
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import mesh as sharding
from vaejax.runtime.watchdog import Watchdog
from vaejax.train import optimizer as optim
from vaejax.train import programs as compiled
from vaejax.train import state as train_state


def test_a_compilation_names_its_reason():
    nothing, lpips = compiled.Phase(False, False), compiled.Phase(True, False)
    both = compiled.Phase(True, True)
    assert compiled.reason(None, both, 0) == "first update"
    assert compiled.reason(nothing, lpips, 650) == "from update 650: perceptual"
    assert compiled.reason(nothing, both, 650) == "from update 650: perceptual, discriminators"
    assert compiled.reason(lpips, both, 700) == "from update 700: discriminators"
    assert compiled.reason(both, lpips, 600) == "back at update 600"


@pytest.mark.variants  # collecting garbage at every step takes long
def test_a_phase_leaves_no_program_on_the_device_and_can_come_back():
    mesh = sharding.make_mesh(ConfigDict({"data": 8, "fsdp": 1, "space": 1}))
    adversary = losses.adversary(start=2)
    model = Autoencoder(architecture(**SMALLEST))
    settings = config.defaults().optim
    optimizer = optim.optimizer(settings, 10)
    state = train_state.create(model, optimizer, adversary, mesh, 0)
    programs = compiled.Programs(
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
    update = compiled.Update(programs, [Bucket(1, 16, 16, 8)], seed=0)
    frames = np.random.default_rng(0).integers(256, size=(8, 1, 16, 16, 3), dtype=np.uint8)
    there, judged = {}, []

    class Counting(Watchdog):
        def begin(self, name, step, patient=False):
            gc.collect()
            there.setdefault(name, []).append(len(jax.devices()[0].client.live_executables()))

    for step in (0, 1, 2, 3, 0):
        update.prepare(step, Counting(0))
        state, terms = update(state, {"image_16x16": Batch(frames, range(8), [], [])})
        judged.append("accuracy_image" in terms["all"])
    assert judged == [False, False, True, True, False]
    begun = there["compiling the update"]
    assert len(begun) == 3 and len(set(begun)) == 1, there
