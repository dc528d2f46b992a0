"""A chip with round numbers, and costs of programs on it."""

from vaejax.plan.cost import Cost
from vaejax.runtime import chips as hardware

CHIP = hardware.Tpu(
    flops=100.0, memory=1000.0, bandwidth=10.0, interconnect=10.0, dimensions=2, ring=4, clock=4.0
)


def cost(**more):
    return Cost(
        **{
            "flops": 800,
            "model_flops": 600,
            "memory_traffic": 10.0,
            "collectives": {"all-reduce": 5.0},
            "crossing": 0.0,
            "cycles": 0.0,
            "output": 50,
            "aliased": 50,
            "temporary": 400,
            "code": 10,
            "fits": True,
            "seconds": 1.0,
        }
        | more
    )
