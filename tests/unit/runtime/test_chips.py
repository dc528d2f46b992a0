import pytest

from vaejax.runtime import chips as hardware


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
def test_a_device_has_the_peak_of_its_own_name(kind, flops):
    assert hardware.flops(kind) == flops


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
def test_a_line_of_chips_has_half_of_what_a_ring_has(kind, shape, link):
    """Google's slices close v5e's dimensions at 16 chips only, v5p's at multiples of 4."""
    assert hardware.chip(kind).link(shape) == link
