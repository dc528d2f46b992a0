"""Groups of devices and bytes sent, against what devices that hold arrays would send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from vaejax.plan import collectives, hlo

GROUPS = {
    "replica_groups={{0,2},{1,3}}, dimensions={0}": [0, 2],
    "replica_groups=[2,4]<=[8]": [0, 1, 2, 3],
    "replica_groups=[4,2]<=[2,4]T(1,0)": [0, 4],
    "replica_groups=[2,4]<=[2,2,2]T(1,0,2), use_global_device_ids=true": [0, 1, 4, 5],
    "replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}": [0, 1, 2, 3],
    "replica_groups=mesh['data'=2,'fsdp'=4]{'data'}": [0, 4],
    "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}": [0, 1, 2, 3],
    "replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}": [0, 4],
    "dimensions={0}": [0],
}


@pytest.mark.parametrize(("text", "members"), GROUPS.items())
def test_the_first_group_of_a_collective(text, members):
    assert collectives.group(text) == members


def test_groups_of_an_unknown_form_are_not_taken_for_one_device():
    with pytest.raises(ValueError, match="unknown replica groups"):
        collectives.group("replica_groups=grid(2, 4)")


NODES = [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "sent", "crossing"),
    [
        ("all-gather", 7, 1),  # every device sends its part to the other node once
        ("reduce-scatter", 7 / 8, 1 / 2 / 4),  # four devices share half of the array
        ("all-reduce", 2 * 7 / 8, 2 * 1 / 2 / 4),
        ("all-to-all", 7 / 8, 4 / 8),
    ],
)
def test_bytes_within_and_between_nodes(kind, sent, crossing):
    everyone, one_node = "replica_groups=[1,8]<=[8]", "replica_groups=[2,4]<=[8]"
    assert collectives.sent(kind, everyone) == pytest.approx(sent)
    assert collectives.crossing(kind, everyone, NODES) == pytest.approx(crossing)
    assert collectives.crossing(kind, one_node, NODES) == collectives.crossing(kind, everyone, ()) == 0


def test_a_permutation_crosses_where_its_pairs_do():
    ring = "source_target_pairs={{0,1},{1,2},{2,3},{3,4},{4,5},{5,6},{6,7},{7,0}}"
    assert collectives.sent("collective-permute", ring) == 1
    assert collectives.crossing("collective-permute", ring, NODES) == 2 / 8


def test_a_sum_over_data_crosses_nodes_and_a_sum_over_fsdp_does_not():
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])

    def traffic(axis):
        x = jax.ShapeDtypeStruct((8, 1024), jnp.float32, sharding=NamedSharding(mesh, P(axis)))
        whole = NamedSharding(mesh, P())
        text = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(x).compile().as_text()
        return hlo.traffic(text, NODES)

    assert traffic("fsdp").crossing == 0 < sum(traffic("fsdp").collectives.values())
    over_data = traffic("data")
    assert over_data.crossing == pytest.approx(4096) == sum(over_data.collectives.values())
    np.testing.assert_array_equal(list(over_data.collectives), ["all-reduce"])
