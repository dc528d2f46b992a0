"""Eight CPU devices, a persistent compilation cache and strict promotion for every test."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import absl.flags
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / "build" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
absl.flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="session")
def key():
    return jax.random.key(0)
