"""The cost of one program, measured by compiling it. Costs are cached, so each program compiles once."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.stages import Traced

import vaejax
from vaejax import files
from vaejax.plan import collectives, evaluation, gpu_target, hlo
from vaejax.plan.topology import Topology
from vaejax.runtime import cache, flops

COMPILERS = ("jax", "jaxlib", "libtpu", "jax-cuda13-plugin")  # packages that decide what is compiled


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one program.

    Bytes are per chip. If the program does not fit in memory, only `temporary` is known; other bytes are 0.

    Attributes:
      flops: floating-point operations over all chips, including rematerialization.
      model_flops: floating-point operations over all chips, excluding rematerialization.
      memory_traffic: bytes read from and written to memory.
      collectives: bytes sent to other chips, by kind of collective.
      crossing: those of these bytes that go to other slices or nodes.
      cycles: cycles that libtpu expects; 0 for other compilers.
      output: bytes of the outputs.
      aliased: bytes of the outputs that reuse the memory of donated arguments.
      temporary: bytes of temporaries. If the program does not fit, this is all that it needs, arguments
        included, because the compiler's error gives no other number.
      code: bytes of the compiled code.
      fits: whether the compiler could fit the program in memory.
      seconds: compilation time in seconds.
    """

    flops: int
    model_flops: int
    memory_traffic: float
    collectives: dict[str, float]
    crossing: float
    cycles: float
    output: int
    aliased: int
    temporary: int
    code: int
    fits: bool
    seconds: float

    @property
    def sent(self) -> float:
        """Bytes sent to other chips, over all kinds of collectives."""
        return sum(self.collectives.values())


class Costs:
    """The costs of programs for a topology, cached in $XDG_CACHE_HOME/vaejax/plan (~/.cache/vaejax/plan).

    The cache has two levels. The first is keyed by a program's sources: its configuration and vaejax's code.
    It stores the operation counts and a key of the second level. The second level is keyed by the program's
    StableHLO text and stores the numbers of the compiled program. All keys include the topology, the versions
    of JAX and the compiler, and the compiler's flags. A program with known sources is not even traced.

    Args:
      topology: the topology to compile for.
      report: function that receives one line when a program is traced, compiled or done.
    """

    def __init__(self, topology: Topology, report: Callable[[str], None] = lambda line: None):
        self._topology, self._report = topology, report
        self._folder = cache.folder() / "plan"
        self._folder.mkdir(parents=True, exist_ok=True)

    def of(
        self,
        name: str,
        made_from: object,
        trace: Callable[[], Traced],
        model_flops: Callable[[], int],
        slices: Sequence[int] = (),
    ) -> Cost:
        """The cost of a program, from the cache or by compiling it.

        Args:
          name: the program's name in reports.
          made_from: JSON value of all that determines the program, except the topology and vaejax's code.
          trace: function that returns the traced program.
          model_flops: function that counts the program's operations without rematerialization.
          slices: slice or node of each device of the mesh, in its order; () if there is only one.
        """
        source = self._key("made from", _sources(), json.dumps(made_from, sort_keys=True))
        known = self._read(source)
        if known and (compiled := self._read(known["program"])):
            return Cost(**known["operations"], **compiled)
        self._report(f"tracing {name} ...")
        traced = trace()
        operations = {"flops": flops.count(traced.jaxpr), "model_flops": model_flops()}
        lowered = traced.lower(lowering_platforms=(self._topology.platform,))
        program = self._key("program", lowered.as_text())
        compiled = self._read(program)
        if not compiled:
            self._report(f"compiling {name} ...")
            compiled = _compiled(lowered, dict(self._topology.compiler_options), slices)
            self._report(f"compiled {name} in {compiled['seconds']:.0f} s")
            self._write(program, compiled)
        self._write(source, {"program": program, "operations": operations})
        return Cost(**operations, **compiled)

    def _key(self, *parts: str) -> str:
        made_by = {package: _version(package) for package in COMPILERS}
        made_by |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
        fields = [field.name for field in dataclasses.fields(Cost)]
        whole = json.dumps([self._topology.name, made_by, _reader(), fields, *parts])
        return hashlib.sha256(whole.encode()).hexdigest()

    def _read(self, key: str) -> dict | None:
        try:
            return files.read_json(self._folder / f"{key}.json")
        except (OSError, ValueError):
            return None

    def _write(self, key: str, value: dict) -> None:
        files.write_json(self._folder / f"{key}.json", value)


def _compiled(lowered: jax.stages.Lowered, options: dict[str, Any], slices: Sequence[int]) -> dict[str, Any]:
    """Compiles a program and returns the fields of its `Cost` except the operation counts."""
    begin = time.monotonic()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_by(str(error))
        if not needed:
            raise
        unknown = dict.fromkeys(("memory_traffic", "crossing", "cycles", "output", "aliased", "code"), 0)
        return unknown | {
            "collectives": {},
            "temporary": needed,
            "fits": False,
            "seconds": time.monotonic() - begin,
        }
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError(
            "this compiler reports no memory use or no HLO text, which the plan needs; accepted: the versions"
            " of jax and libtpu in pyproject.toml"
        )
    moved = hlo.traffic(text, slices)
    return {
        "memory_traffic": moved.memory,
        "collectives": moved.collectives,
        "crossing": moved.crossing,
        "cycles": moved.cycles,
        "output": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "fits": True,
        "seconds": time.monotonic() - begin,
    }


def needed_by(message: str) -> int:
    """The total bytes that a program needs, from libtpu's out-of-memory message; 0 for any other message."""
    match = re.search(r"(?:HLO temporaries \(|Used )([\d.]+)([KMGT])\b", message)
    return int(float(match[1]) * 2 ** (10 * (1 + "KMGT".index(match[2])))) if match else 0


@functools.cache
def _sources() -> str:
    """A digest of the source code of vaejax, except vaejax.plan: any change may change a program."""
    digest = hashlib.sha256()
    root = pathlib.Path(vaejax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.parent.name != "plan":
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _reader() -> str:
    """A digest of the plan's own modules that decide the numbers."""
    modules = (collectives, evaluation, gpu_target, hlo)
    sources = (pathlib.Path(str(module.__file__)).read_bytes() for module in modules)
    return hashlib.sha256(b"".join(sources)).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
