"""Files are encoded and decoded with the bits of the command in a process of its own."""

import jax
import pytest

from vaejax.models import conv


@pytest.fixture(scope="module")
def as_the_command():
    """For all tests of a module at once: what they compile with the CPU's convolutions they share."""
    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()  # what other modules traced holds other convolutions
        patch.setitem(conv.PLATFORMS, "cpu", conv._cpu)
        yield
    jax.clear_caches()
