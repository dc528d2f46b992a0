import pytest

from vaejax import hardware


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
