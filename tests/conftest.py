"""Eight CPU devices, quick compilation and its cache for every test."""

import os
import pathlib
import signal

import jaxlib.version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: unoptimised code is compiled seven times as fast, and twice as fast
# again without the fusion emitters, which later releases have no choice about.
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

# Signatures are checked when a test traces or calls a function. The hook must precede vaejax's first import.
jaxtyping.install_import_hook(
    ["vaejax.models", "vaejax.losses", "vaejax.train", "vaejax.codec"],
    f"{tests.support.signatures.__name__}.checked",
)

from vaejax.models import conv  # noqa: E402
from vaejax.runtime import distributed  # noqa: E402

# A shell's background job ignores Ctrl-C, and with it whatever the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_num_cpu_devices", 8)
distributed.serialize_cpu_programs()
# What accelerators compute, XLA's own convolutions, compiles in a quarter of the time of a CPU's, which tests
# of convolutions and whole runs take.
conv.PLATFORMS["cpu"] = conv._native
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(__file__).parent.parent / "build" / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
absl.flags.FLAGS.mark_as_parsed()


@pytest.fixture
def as_the_command(monkeypatch):
    """What a test computes has the bits of what the command does, in a process of its own."""
    monkeypatch.setitem(conv.PLATFORMS, "cpu", conv._cpu)


@pytest.fixture(scope="session")
def key():
    return jax.random.key(0)


# A default test should take little CPU time: 10 s are reported, 20 s fail. Marked tests may take longer.
REPORTED, FAILING = 10, 20
MARKS = {"runs", "hosts", "variants", "tpu"}


def cpu_seconds():
    """CPU time of this process and its finished children."""
    return sum(os.times()[:4])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Measures a test without its fixtures."""
    begin = cpu_seconds()
    result = yield
    used = cpu_seconds() - begin
    if not MARKS & {mark.name for mark in item.iter_markers()}:
        item.user_properties.append(("cpu_seconds", used))
        if used > FAILING:
            pytest.fail(f"{used:.0f} CPU-seconds; a test above {FAILING} needs a mark", pytrace=False)
    return result


def pytest_terminal_summary(terminalreporter):
    """Lists the unmarked tests that take long."""
    slow = {}
    for report in (r for reports in terminalreporter.stats.values() for r in reports):
        seconds = dict(getattr(report, "user_properties", ())).get("cpu_seconds", 0)
        if seconds > REPORTED and report.when == "call":
            slow[report.nodeid] = seconds
    for name, seconds in sorted(slow.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:5.1f} CPU-seconds: {name}")


def pytest_collection_modifyitems(items):
    """Whole runs come first: at the end one core would wait for the other."""
    items.sort(key=lambda item: item.path.parent.name != "runs")
