import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from tests.support import losses
from tests.support.faults import Fault, injecting
from tests.support.models import SMALL, SMALLEST, architecture
from vaejax.config import schema as config
from vaejax.data.bucket import Bucket
from vaejax.data.pipeline import Batch
from vaejax.errors import InputError
from vaejax.models import autoencoder, conv
from vaejax.models.autoencoder import Autoencoder
from vaejax.plan import collectives
from vaejax.runtime.mesh import AXES, make_mesh, parameter_spec, placing_frames, replicated, shard_batch
from vaejax.runtime.watchdog import Watchdog
from vaejax.train import optimizer as optim
from vaejax.train import programs as compiled
from vaejax.train import state as train_state
from vaejax.train import step as train_step
from vaejax.train.update import Update


def check_that_no_loop_exchanges(text):
    """XLA orders the collectives of a CPU program, but not with those inside a loop."""
    for line in text.splitlines():
        if line.endswith("{") and " -> " in line:
            computation = line
        elif any(f" {kind}(" in line for kind in collectives.KINDS):
            assert computation.startswith("ENTRY"), (computation, line)


def one_update(devices: int, data: int, fsdp: int, space: int, images: int = 4):
    """Terms, gradients and parameters after one update of an image and a video bucket on a mesh."""
    sizes = (data, fsdp, space)
    grid = np.array(jax.devices()[:devices]).reshape(sizes)
    mesh = jax.sharding.Mesh(grid, AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    model = Autoencoder(architecture(**SMALL))
    weights = {"reconstruction": 1.0, "kl": 1e-6, "adversarial": 0.1}
    objective = losses.objective(weights, likelihood="gaussian")
    adversary = losses.adversary(("image", "video"), lecam=0.1)
    settings = config.defaults().optim
    settings.update({"warmup": 0, "agc": 0.01})
    optimizer = optim.optimizer(settings, 10)
    state = train_state.create(model, optimizer, adversary, mesh, 0)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    gathered = train_step.zeros(state, adversary)
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    rng, terms = np.random.default_rng(0), {}
    for shape in ((images, 1, 32, 16, 3), (8, 5, 16, 16, 3)):  # 4 on 8 devices are split by height
        frames = shard_batch(mesh, rng.integers(256, size=shape, dtype=np.uint8))
        step = functools.partial(
            train_step.bucket_gradients, weight=0.7, model=model, objective=objective, adversary=adversary
        )
        with placing_frames(mesh):
            program = jax.jit(step).lower(state, gathered, frames, key, {}).compile()
        check_that_no_loop_exchanges(program.as_text())
        gathered, terms[f"{shape[1]} frames"] = program(state, gathered, frames, key, {})
    update = functools.partial(
        train_step.apply_gradients,
        optimizer=optimizer,
        clipping=optim.clipping(settings),
        ema_decay=0.9,
        adversary=adversary,
    )
    state, terms["all"] = jax.jit(update, out_shardings=(shardings, None))(state, gathered)
    return jax.device_get((terms, gathered)), state


@pytest.mark.variants  # what convolutions do among devices: test_convolve.py
@pytest.mark.parametrize(
    ("sizes", "images", "convolution"),
    [
        pytest.param((2, 2, 2), 4, conv._as_channels, id="data 2 fsdp 2 space 2 of TPUs"),
        pytest.param((2, 2, 2), 4, conv._cpu, id="data 2 fsdp 2 space 2 of CPUs"),
        pytest.param((4, 2, 1), 8, conv._cpu, id="data 4 fsdp 2 of CPUs"),
    ],
)
def test_eight_devices_compute_the_same_as_one(monkeypatch, sizes, images, convolution):
    monkeypatch.setattr("vaejax.runtime.mesh.SMALLEST_SHARDED", 1)
    monkeypatch.setitem(conv.PLATFORMS, "cpu", convolution)
    expected, _ = one_update(1, 1, 1, 1, images)
    if convolution is conv._as_channels:  # on TPUs the first frame passes apart from the rest
        monkeypatch.setattr(autoencoder, "on_tpu", lambda: True)
    sharded, state = one_update(8, *sizes, images)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(sharded), jax.tree.leaves(expected), strict=True
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5 * max(1e-3, np.abs(b).max()), err_msg=name)
    kernel = state.params["autoencoder"]["encoder"]["conv_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2  # each fsdp device holds half


def test_parameters_are_split_by_output_channel_first():
    assert parameter_spec((3, 3, 3, 64, 96), 8) == P(None, None, None, None, "fsdp")
    assert parameter_spec((3, 3, 3, 64, 97), 8) == P(None, None, None, "fsdp")
    assert parameter_spec((3, 3, 3, 63, 97), 8) == P()
    assert parameter_spec((64,), 8) == P()
    assert parameter_spec((3, 3, 3, 64, 96), 1) == P()


def test_the_mesh_takes_the_remaining_devices_or_names_the_accepted_sizes():
    assert dict(make_mesh(ConfigDict({"data": 0, "fsdp": 2, "space": 1})).shape) == {
        "data": 4,
        "fsdp": 2,
        "space": 1,
    }
    with pytest.raises(InputError, match=r"fsdp 3 .* the 8 devices; .* product is 8"):
        make_mesh(ConfigDict({"data": 0, "fsdp": 3, "space": 1}))


def test_slow_links_are_crossed_by_data_and_if_need_be_by_fsdp_but_not_by_space():
    devices = jax.devices()[:8]
    interleaved = devices[::2] + devices[1::2]

    def node(device):
        return device.id % 2

    def grid(nodes=node, **sizes):
        return np.vectorize(node)(make_mesh(ConfigDict(sizes), interleaved, nodes).devices)

    whole = grid(data=4, fsdp=1, space=2)  # data 0 and 1 on one node, 2 and 3 on the other
    assert whole.shape == (4, 1, 2) and (whole == np.array([0, 0, 1, 1])[:, None, None]).all()
    assert (grid(data=1, fsdp=4, space=2) == np.array([0, 0, 1, 1])[None, :, None]).all()
    with pytest.raises(InputError, match=r"data 1 x fsdp 1 on 2 nodes or slices; accepted: .* multiple of 2"):
        grid(data=1, fsdp=1, space=8)
    with pytest.raises(InputError, match=r"have different numbers of devices: 1, 7"):
        grid(lambda device: device.id == 0, data=8, fsdp=1, space=1)


def test_no_leaf_of_a_new_state_is_weakly_typed():
    """A weak type becomes strong in the first update, and everything compiles twice."""
    mesh = make_mesh(ConfigDict({"data": 0, "fsdp": 1, "space": 1}))
    optimizer = optim.optimizer(config.defaults().optim, 10)
    model, adversary = Autoencoder(architecture(**SMALLEST)), losses.adversary()
    state = jax.eval_shape(lambda: train_state.create(model, optimizer, adversary, mesh, 0))
    assert not [leaf for leaf in jax.tree.leaves(state) if leaf.weak_type]


def train_with_nan(place, devices):
    """States of three updates and whether each was finite; one sample of the second has a NaN."""
    mesh = make_mesh(ConfigDict({"data": devices // 2, "fsdp": 2, "space": 1}))
    model, objective = (
        Autoencoder(architecture(**SMALLEST)),
        losses.objective({"reconstruction": 1.0, "adversarial": 0.1 * (place == "discriminator")}),
    )
    adversary = losses.adversary() if place == "discriminator" else None
    settings = config.defaults().optim
    optimizer, clipping = optim.optimizer(settings, 10), optim.clipping(settings)
    state = train_state.create(model, optimizer, adversary, mesh, 0)
    fault = Fault(place, "image_16x16", lambda step, x: step == 1, sample=5)
    shapes = train_state.shapes(model, optimizer, adversary, mesh)
    programs = compiled.Programs(
        shapes, mesh, model, objective, adversary, optimizer, clipping, 0.9, {}, inject=injecting(fault)
    )
    update = Update(programs, [Bucket(1, 16, 16, 8)], seed=0)
    rng, states, finite = np.random.default_rng(0), [], []
    for step in range(3):
        batch = Batch(rng.integers(256, size=(8, 1, 16, 16, 3), dtype=np.uint8), range(8), [], [])
        update.prepare(step, Watchdog(0))
        state, terms = update(state, {"image_16x16": batch})
        states.append(jax.device_get(state))
        finite.append((bool(terms["all"]["finite"]), bool(terms["image_16x16"]["finite"])))
        flags = [bool(shard.data) for shard in terms["all"]["finite"].addressable_shards]
        assert len(flags) == devices and len(set(flags)) == 1  # all devices decided the same
    return states, finite


@pytest.mark.parametrize(
    "place",
    [
        "data",
        pytest.param("generator", marks=pytest.mark.variants),
        pytest.param("discriminator", marks=pytest.mark.variants),
    ],
)
def test_a_nan_on_one_device_makes_all_devices_skip_the_update(place):
    states, finite = train_with_nan(place, 8)
    assert finite == [(True, True), (False, False), (True, True)]
    before, skipped, after = states
    assert (before.step, skipped.step, after.step) == (1, 2, 3)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(skipped.replace(step=before.step)), strict=True):
        assert a.tobytes() == b.tobytes()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    for part in ("params", "ema", "optimizer", *(["discriminators"] if before.discriminators else [])):
        pairs = zip(
            jax.tree.leaves(getattr(before, part)), jax.tree.leaves(getattr(after, part)), strict=True
        )
        assert any((a != b).any() for a, b in pairs), part  # training continues
