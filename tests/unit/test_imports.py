"""The rooms: which imports which, without a circle, and who needs JAX."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "vaejax"

# Room: the rooms it may import. Every room may import itself.
BASE = {"errors", "files", "config"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "config": {"errors"},
    "configs": {"config"},
    "cli": {"errors", "files"},
    "models": {"errors", "files"},
    "networks": {"errors", "files", "models"},
    "runtime": {"errors", "files", "config", "models"},
    "losses": BASE | {"models", "networks", "runtime"},
    "data": BASE | {"cli", "configs", "runtime"},
    "rundir": BASE | {"cli", "models", "runtime", "losses", "data"},
}
ALLOWED["codec"] = ALLOWED["rundir"] | {"networks", "rundir"}
ALLOWED["evaluate"] = ALLOWED["codec"] | {"codec"}
ALLOWED["probe"] = ALLOWED["export"] = ALLOWED["evaluate"] | {"evaluate"}
ALLOWED["train"] = ALLOWED["probe"] | {"probe"}
ALLOWED["main"] = ALLOWED["plan"] = ALLOWED["train"] | {"train"}
ALLOWED["watch"] = BASE | {"cli", "runtime", "data", "rundir", "evaluate"}
ALLOWED["__init__"] = {"codec", "errors"}  # vaejax.load

# Modules that import no JAX, so that commands which only read files start at once.
WITHOUT_JAX = ("vaejax", "vaejax.config", "vaejax.config.flag", "vaejax.cli", "vaejax.errors", "vaejax.files")
WITH_JAX_IN_DATA = {"mixture", "pipeline", "sampler"}  # Grain imports it


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imports(path: pathlib.Path) -> set[str]:
    """The vaejax modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vaejax":
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module == "vaejax" else {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("vaejax.")}
    return found - {"vaejax.__version__", "vaejax.load"}


def test_every_import_follows_the_direction_of_the_rooms():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        here = room(".".join(path.relative_to(ROOT).with_suffix("").parts))
        for module in imports(path):
            there = room(module)
            if there not in ALLOWED[here] | {here}:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_the_rooms_have_no_circle():
    order = list(ALLOWED)
    for name, allowed in ALLOWED.items():
        if name != "__init__":
            assert all(order.index(other) < order.index(name) for other in allowed), name


def test_the_package_has_few_rooms():
    entries = [p for p in PACKAGE.iterdir() if p.name not in ("__pycache__", "configs")]
    assert len(entries) <= 20, sorted(p.name for p in entries)
    assert {room(f"vaejax.{p.stem}") for p in entries if p.suffix != ".typed"} <= ALLOWED.keys()


def test_no_file_is_long():
    lengths = {str(p.relative_to(ROOT)): len(p.read_text().splitlines()) for p in PACKAGE.rglob("*.py")}
    # A whole model, which exports carry as one file.
    assert lengths.pop("vaejax/export/torch_autoencoder.py") <= 600
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_only_the_modules_that_need_jax_import_it():
    data = [p.stem for p in (PACKAGE / "data").glob("*.py") if p.stem != "__init__"]
    modules = [*WITHOUT_JAX, *(f"vaejax.data.{name}" for name in data if name not in WITH_JAX_IN_DATA)]
    program = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]:\n"
        "    if not os.fork():\n"
        "        importlib.import_module(name)\n"
        "        if 'jax' in sys.modules: print(name, flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *modules], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "" and done.stderr == ""


@pytest.mark.parametrize("wrong", ["from vaejax.train import loop", "import vaejax.plan.cost"])
def test_a_wrong_import_is_found(tmp_path, wrong):
    path = tmp_path / "module.py"
    path.write_text(f"def f():\n    {wrong}\n")
    assert {room(module) for module in imports(path)} <= {"train", "plan"} and imports(path)
