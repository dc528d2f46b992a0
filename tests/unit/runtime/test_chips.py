import pytest

from vaejax.runtime import chips


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 0.0),
        ("NVIDIA RTX A1000", 0.0),
        ("cpu", 0.0),
    ],
)
def test_a_device_kind_has_the_peak_of_its_longest_listed_name(kind, flops):
    assert chips.peak_flops(kind) == flops


@pytest.mark.parametrize(
    ("kind", "shape", "link"),
    [
        ("TPU v5 lite", (16, 16), 100e9),
        ("TPU v5 lite", (8, 8), 50e9),
        ("TPU v5 lite", (8, 16), 50e9),
        ("TPU v5", (4, 4, 4), 200e9),
        ("TPU v5", (2, 2, 4), 100e9),
    ],
)
def test_a_line_of_chips_has_half_the_bandwidth_of_a_ring(kind, shape, link):
    """On Google's slices a dimension is a ring at 16 chips of v5e, and at multiples of 4 chips of v5p."""
    assert chips.chip(kind).link(shape) == link
