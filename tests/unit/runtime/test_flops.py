import jax
import jax.numpy as jnp
import pytest

from tests.support.models import architecture, clip
from vaejax.models.autoencoder import Autoencoder
from vaejax.runtime import flops


@pytest.mark.parametrize(
    ("strides", "padding", "dilation"),
    [
        ((1, 1), [(1, 1), (1, 1)], (1, 1)),
        ((2, 2), [(1, 2), (0, 1)], (1, 1)),
        ((1, 1), [(2, 2), (2, 2)], (2, 2)),
    ],
)
def test_convolutions_and_their_gradients_count_as_xla_counts_them(strides, padding, dilation):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation=dilation)

    def gradients(x, kernel):
        return jax.grad(lambda x, kernel: convolve(x, kernel).sum(), (0, 1))(x, kernel)

    arguments = jnp.zeros((2, 6, 17, 19)), jnp.zeros((8, 6, 3, 3))
    for f in (convolve, gradients):
        expected = jax.jit(f).lower(*arguments).cost_analysis()["flops"]
        assert flops.count(jax.make_jaxpr(f)(*arguments)) == expected


def test_gradients_cost_three_forward_passes_and_rematerialization_half_of_another():
    def counts(**options):
        model, key = Autoencoder(architecture(size="small", **options)), jax.random.key(0)
        x = clip(5, 64, 64)
        params = jax.eval_shape(model.init, key, x, key)

        def loss(params):
            return model.apply(params, x, key)[0].sum()

        return [flops.count(jax.make_jaxpr(f)(params)) for f in (loss, jax.grad(loss))]

    forward, both = counts()
    assert both == pytest.approx(3 * forward, rel=0.01)
    assert 0.4 * forward < counts(remat=(0, 1, 2))[1] - both < 0.6 * forward


def test_the_body_of_a_loop_counts_once_per_iteration():
    def twice(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=7)[0]

    assert flops.count(jax.make_jaxpr(twice)(jnp.zeros((8, 8)))) == 7 * 2 * 8**3
