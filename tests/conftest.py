"""Gives every test eight CPU devices and quick, cached compilation; limits the CPU time of a test."""

import os
import pathlib
import signal

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # its idle threads spin
# Tests compile much and compute little. Unoptimized code compiles seven times as fast, and twice as fast
# again without XLA's fusion emitters, which jaxlib 0.11 and later cannot turn off.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + (" --xla_cpu_use_fusion_emitters=false" if jaxlib.version.__version_info__ < (0, 11) else ""),
)

import absl.flags
import jax
import jaxtyping
import pytest

import tests.support.signatures
from tests.support.object_stores import gcs, s3  # noqa: F401 - fixtures, of one server each for all modules

# Checks the shapes and dtypes of signatures whenever a function is traced or called. Tests take a sixth
# longer, so only some suites of .ci/run ask for it. The hook must precede vaejax's import.
if os.environ.get("CHECK_SHAPES"):
    jaxtyping.install_import_hook(
        ["vaejax.models", "vaejax.losses", "vaejax.train", "vaejax.codec"],
        f"{tests.support.signatures.__name__}.checked",
    )

from vaejax.models import conv
from vaejax.runtime import distributed

# A background job of a shell ignores Ctrl-C, and processes that tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_num_cpu_devices", 8)
distributed.serialize_cpu_programs()
# Tests use the convolutions of GPUs and TPUs on every platform. Tracing one implementation instead of two is
# faster, and these compile in a quarter of the time of those for CPUs. Tests of convolutions, and runs in
# processes of their own, use the platform's.
EVERY_PLATFORM = dict(conv.PLATFORMS)
conv.PLATFORMS = {"default": conv._as_channels}
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / "build" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
absl.flags.FLAGS.mark_as_parsed()


@pytest.fixture(scope="module")
def as_the_command():
    """Uses each platform's convolutions, so that a module computes the same bits as a command."""
    with pytest.MonkeyPatch.context() as patch:
        jax.clear_caches()  # programs that other modules traced hold other convolutions
        patch.setattr(conv, "PLATFORMS", EVERY_PLATFORM)
        yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def key():
    return jax.random.key(0)


# CPU seconds above which an unmarked test is reported, or fails. Marked tests may take longer.
REPORTED, FAILING = 10, 20
MARKS = {"runs", "hosts", "variants", "tpu"}


def cpu_seconds():
    """CPU time of this process and its finished children."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Measures the CPU time of a test without its fixtures; fails an unmarked test that takes too much."""
    begin = cpu_seconds()
    result = yield
    used = cpu_seconds() - begin
    if not MARKS & {mark.name for mark in item.iter_markers()}:
        item.user_properties.append(("cpu_seconds", used))
        if used > FAILING:
            pytest.fail(f"{used:.0f} CPU-seconds; a test above {FAILING} needs a mark", pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter):
    """Lists the unmarked tests that take more than REPORTED seconds."""
    slow = {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        seconds = dict(getattr(report, "user_properties", ())).get("cpu_seconds", 0)
        if seconds > REPORTED and report.when == "call":
            slow[report.nodeid] = seconds
    for name, seconds in sorted(slow.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:5.1f} CPU-seconds: {name}")


def pytest_collection_modifyitems(items):
    """Starts whole runs first: a long test at the end would leave the other cores idle."""
    items.sort(key=lambda item: item.path.parent.name != "runs")
