"""LPIPS is that of the lpips package, whose backbones here take their weights from our file."""

import copy
import importlib.machinery
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data
from skimage.transform import resize

from vaejax.networks import lpips as perceptual

torch = pytest.importorskip("torch", reason="not in the test extra: a plain torch can pull gigabytes")
lpips = jax.jit(perceptual.lpips, static_argnums=(3, 4))
gradient_of_y = jax.jit(
    jax.grad(lambda *arguments: perceptual.lpips(*arguments).sum(), argnums=2), static_argnums=(3, 4)
)


def torchvision_features(network, params):
    """The backbone as torchvision builds it, holding our weights."""
    layers, before = [], 3
    for i, conv in enumerate(perceptual.NETWORKS[network]):
        if conv.pool[0]:
            layers.append(torch.nn.MaxPool2d(*conv.pool))
        layer = torch.nn.Conv2d(before, conv.features, conv.size, conv.stride, conv.padding)
        ours = params[{"vgg16": "VGG16_0", "alexnet": "AlexNet_0"}[network]][f"Conv_{i}"]
        layer.weight.data = torch.tensor(ours["kernel"].transpose(3, 2, 0, 1).copy())
        layer.bias.data = torch.tensor(ours["bias"])
        layers += [layer, torch.nn.ReLU(inplace=False)]
        before = conv.features
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


@pytest.fixture(scope="module", params=[pytest.param("vgg16", marks=pytest.mark.variants), "alexnet"])
def both(request):
    """(network, our parameters, the lpips package's module)."""
    network, params = request.param, perceptual.load(request.param)
    torchvision = types.ModuleType("torchvision")
    torchvision.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    torchvision.models = types.SimpleNamespace(**{network: lambda **_: torchvision_features(network, params)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", torchvision)
        patch.setitem(sys.modules, "torchvision.models", torchvision.models)
        package = pytest.importorskip("lpips", reason="it needs torchvision, so it stays out of the extras")
        from lpips import pretrained_networks

        patch.setattr(pretrained_networks, "tv", torchvision.models)
        theirs = package.LPIPS(net={"vgg16": "vgg", "alexnet": "alex"}[network], verbose=False)
    return network, params, theirs.eval()


def photos():
    """Four photos in [-1, 1], (4, 64, 80, 3), and damaged copies."""
    rng = np.random.default_rng(0)
    x = np.stack([resize(photo, (64, 80)) for photo in (data.astronaut(), data.chelsea(), data.rocket())])
    x = np.concatenate([x, x[:1, ::-1]]) * 2 - 1
    y = x + rng.normal(size=x.shape) * np.array([0.05, 0.2, 0.5, 0.02])[:, None, None, None]
    return np.float32(x), np.float32(np.clip(y, -1, 1))


def planar(x):
    return torch.tensor(x.transpose(0, 3, 1, 2).copy(), requires_grad=True)


def test_distances_and_gradients_are_those_of_the_lpips_package(both):
    network, params, theirs = both
    x, y = photos()
    b = planar(y)
    expected = theirs(planar(x), b)[:, 0, 0, 0]
    ours = lpips(params, x, y, network)
    np.testing.assert_allclose(ours, expected.detach().numpy(), atol=1e-4)
    assert expected.detach().numpy().min() > 1e-4  # not a comparison of zeros
    # In float64: in float32 two values may tie but for rounding, and then a ReLU or a maximum passes its
    # gradient elsewhere on another processor.
    x, y = (np.float64(images[1:3, :32, :48]) for images in (x, y))
    theirs, b = copy.deepcopy(theirs).double(), planar(y)
    theirs(planar(x), b).sum().backward()
    with jax.enable_x64(True):
        gradient = gradient_of_y(jax.tree.map(np.float64, params), x, y, network, jnp.float64)
    expected = b.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, expected, atol=1e-6 * np.abs(expected).max())


def test_distances_are_those_of_the_first_three_channels(both):
    network, params, _ = both
    (x, y), alpha = photos(), np.random.default_rng(0).uniform(-1, 1, (2, 4, 64, 80, 2)).astype(np.float32)
    with_alpha = (np.concatenate([pixels, more], -1) for pixels, more in zip((x, y), alpha, strict=True))
    np.testing.assert_array_equal(lpips(params, *with_alpha, network), lpips(params, x, y, network))


def test_equal_images_are_at_no_distance_and_flat_ones_have_finite_gradients(both):
    network, params, _ = both
    x = jnp.array(photos()[0])
    np.testing.assert_allclose(lpips(params, x, x, network), 0, atol=1e-7)
    flat = jnp.zeros((1, 64, 64, 3))
    for y in (flat, flat + 1e-3):
        assert np.isfinite(gradient_of_y(params, flat, y, network, jnp.float32)).all()


def test_bfloat16_convolutions_change_little(both):
    network, params, _ = both
    x, y = photos()
    exact, rough = (lpips(params, x, y, network, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    np.testing.assert_allclose(rough, exact, rtol=0.02, atol=1e-3)
