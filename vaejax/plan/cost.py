"""What one program costs, found by compiling it; kept, so that the same program is compiled once."""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import re
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.stages import Traced

import vaejax
from vaejax.plan import hlo
from vaejax.plan.topology import Topology
from vaejax.runtime import cache, flops


@dataclasses.dataclass(frozen=True)
class Cost:
    """One program, on one chip where nothing else is said.

    Attributes:
      flops: operations of all chips together, recomputation among them.
      model_flops: the same without what rematerialisation computes again.
      memory_traffic: bytes read from and written to memory; 0 where it does not fit.
      collectives: bytes sent to other chips, by kind.
      output, aliased, temporary, code: bytes; the output's aliased part lies in the arguments.
      fits: whether the compiler found room; if not, `temporary` is what it needs in all, with its arguments.
      seconds: that compilation took.
    """

    flops: int
    model_flops: int
    memory_traffic: float
    collectives: dict[str, float]
    output: int
    aliased: int
    temporary: int
    code: int
    fits: bool
    seconds: float

    @property
    def sent(self) -> float:
        """Bytes sent to other chips."""
        return sum(self.collectives.values())


class Costs:
    """Costs of programs for a topology, kept in $XDG_CACHE_HOME/vaejax/plan (~/.cache/vaejax/plan).

    Two keys lead to a cost: what a program is made from (configuration, sources and versions), which is known
    at once, and its own text, which is known when it has been traced. Under the first lie the operations,
    counted from the trace, under the second what was read from the compiled program.

    Args:
      topology: to compile for.
      told: hears what is compiled, and how long it took.
    """

    def __init__(self, topology: Topology, told: Callable[[str], None] = lambda line: None):
        self._topology, self._told = topology, told
        self._folder = cache.folder() / "plan"
        self._folder.mkdir(parents=True, exist_ok=True)

    def of(
        self, name: str, made_from: object, trace: Callable[[], Traced], model_flops: Callable[[], int]
    ) -> Cost:
        """The cost of a program.

        Args:
          name: for people.
          made_from: JSON of all that the program depends on beside vaejax's sources and the topology.
          trace: gives the program.
          model_flops: counts its operations without rematerialisation.
        """
        source = self._key("made from", _sources(), json.dumps(made_from, sort_keys=True))
        known = self._read(source)
        if known and (compiled := self._read(known["program"])):
            return Cost(**known["operations"], **compiled)
        self._told(f"tracing {name} ...")
        traced = trace()
        operations = {"flops": flops.count(traced.jaxpr), "model_flops": model_flops()}
        lowered = traced.lower(lowering_platforms=(self._topology.platform,))
        program = self._key("program", lowered.as_text())
        compiled = self._read(program)
        if not compiled:
            self._told(f"compiling {name} ...")
            compiled = _compiled(lowered)
            self._told(f"compiled {name} in {compiled['seconds']:.0f} s")
            self._write(program, compiled)
        self._write(source, {"program": program, "operations": operations})
        return Cost(**operations, **compiled)

    def _key(self, *parts: str) -> str:
        made_by = {package: _version(package) for package in ("jax", "jaxlib", "libtpu")}
        made_by |= {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
        fields = [field.name for field in dataclasses.fields(Cost)]
        whole = json.dumps([self._topology.name, made_by, _reading(), fields, *parts])
        return hashlib.sha256(whole.encode()).hexdigest()

    def _read(self, key: str) -> dict | None:
        try:
            return json.loads((self._folder / f"{key}.json").read_text())
        except (OSError, ValueError):
            return None

    def _write(self, key: str, value: dict) -> None:
        partial = self._folder / f"{key}.{os.getpid()}.partial"
        partial.write_text(json.dumps(value))
        partial.replace(self._folder / f"{key}.json")


def _compiled(lowered: jax.stages.Lowered) -> dict[str, Any]:
    """All of a `Cost` but the operations."""
    begin = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        needed = needed_by(str(error))
        if not needed:
            raise
        found = dict.fromkeys(("output", "aliased", "code"), 0) | {"memory_traffic": 0.0, "collectives": {}}
        found["temporary"] = needed
        return found | {"fits": False, "seconds": time.monotonic() - begin}
    memory, moved = compiled.memory_analysis(), hlo.traffic(compiled.as_text())
    return {
        "memory_traffic": moved.memory,
        "collectives": moved.collectives,
        "output": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "fits": True,
        "seconds": time.monotonic() - begin,
    }


def needed_by(message: str) -> int:
    """Bytes that a program needs in all, of libtpu's message that it does not fit; 0 of another message."""
    found = re.search(r"(?:HLO temporaries \(|Used )([\d.]+)([KMGT])\b", message)
    return int(float(found[1]) * 2 ** (10 * (1 + "KMGT".index(found[2])))) if found else 0


@functools.cache
def _sources() -> str:
    """A digest of vaejax itself, any change of which may change a program."""
    digest = hashlib.sha256()
    root = pathlib.Path(vaejax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.parent.name != "plan":
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@functools.cache
def _reading() -> str:
    """A digest of what reads a compiled program's text."""
    return hashlib.sha256(pathlib.Path(hlo.__file__).read_bytes()).hexdigest()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
