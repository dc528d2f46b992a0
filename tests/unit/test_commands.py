"""The commands: their --help, the `vaejax` script, and every command that the documents show."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from vaejax.cli import COMMANDS
from vaejax.config.check import keys
from vaejax.config.flag import shipped_names
from vaejax.config.schema import OPEN_SECTIONS, Config

ROOT = pathlib.Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# The test that runs each command from end to end; commands for several hosts need hardware.
RUN_BY = {
    "train": "tests/runs/test_train.py",
    "watch": "tests/unit/watch/test_watch.py",
    "index": "tests/unit/data/test_index.py",
    "prepare": "tests/unit/data/test_prepare.py",
    "evaluate": "tests/unit/evaluate/test_evaluate.py",
    "probe": "tests/unit/probe/test_probe.py",
    "encode": "tests/unit/codec/test_command.py",
    "decode": "tests/unit/codec/test_command.py",
    "reconstruct": "tests/unit/codec/test_command.py",
    "export": "tests/unit/export/test_export.py",
    "plan": "tests/unit/plan/test_plan.py",
}


def run(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=ROOT
    )


def helped(module):
    done = run("-m", module, "--help")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def flags():
    """The flags of each module, from its --help; read when first asked for."""
    known: dict[str, set[str]] = {}

    def of(module):
        if module not in known:
            known[module] = set(re.findall(r"--[a-z][a-z_-]*", helped(module).replace("[no]", "")))
        return known[module]

    return of


def lines(block):
    """The words of each command of a block; a quoted argument may span lines."""
    pending = ""
    for line in block.splitlines():
        pending += line + "\n"
        try:
            parts = [shlex.split(part, comments=True) for part in pending.split("&&")]
        except ValueError:  # an open quotation
            continue
        pending = ""
        yield from filter(None, parts)


def commands():
    """(document, module, arguments) of every command in a document's blocks of shell."""
    for path in DOCUMENTS:
        text = path.read_text().replace("\\\n", " ")
        for block in re.findall(r"```(?:bash|sh|console|shell)\n(.*?)```", text, re.DOTALL):
            for words in lines(block):
                while words and "=" in words[0]:  # VARIABLE=value in front
                    words.pop(0)
                if words and pathlib.Path(words[0]).name == "vaejax":
                    module, more, _ = COMMANDS[words[1]]
                    yield path.name, module, [*more, *words[2:]]
                elif "-m" in words and words[words.index("-m") + 1].startswith("vaejax."):
                    at = words.index("-m") + 1
                    yield path.name, words[at], words[at + 1 :]


SHOWN = list(commands())


def test_the_documents_show_every_command():
    shown = {module for _, module, _ in SHOWN}
    assert shown >= {module for module, *_ in COMMANDS.values()}
    assert COMMANDS.keys() == RUN_BY.keys()
    for path in RUN_BY.values():
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("module", sorted({module for _, module, _ in SHOWN}))
def test_the_flags_that_the_documents_show_exist(module, flags):
    configured = set(keys(Config))
    for document, of, arguments in SHOWN:
        for argument in arguments if of == module else ():
            if not argument.startswith("--"):
                continue
            name, _, value = argument.partition("=")
            if name.startswith("--config."):
                key = name.removeprefix("--config.")
                assert key in configured or key.startswith(tuple(OPEN_SECTIONS)), f"{document}: {argument}"
                continue
            of_beam = any(other.startswith("--runner=") for other in arguments)
            assert of_beam or name in flags(module), f"{document}: {argument}"
            if name == "--config" and "/" not in value:
                assert value.partition(":")[0] in shipped_names(), f"{document}: {argument}"


def test_the_script_forwards_to_the_modules():
    script = "import sys; sys.argv[0] = 'vaejax'; from vaejax.cli import main; sys.exit(main())"
    done = run("-c", script)
    assert done.returncode == 0 and all(name in done.stdout for name in COMMANDS)
    unknown = run("-c", script, "fly")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: fly: not a command; accepted: train, ")
    forwarded = run("-c", script, "index", "--help")
    assert forwarded.returncode == 0 and "python -m vaejax.data.index" in forwarded.stdout


def test_a_wrong_argument_gets_one_line():
    done = run("-m", "vaejax.codec", "encode", "IN", "OUT", "--model=RUN", "--keepgoing")
    assert done.returncode == 2 and done.stderr == (
        "error: unrecognized arguments: --keepgoing; python -m vaejax.codec --help lists what is accepted\n"
    )


@pytest.mark.parametrize("module", sorted({module for module, *_ in COMMANDS.values()}))
def test_help_imports_no_jax(module):
    """Importing JAX would take most of the time."""
    program = (
        "import runpy, sys, atexit\n"
        "atexit.register(lambda: print('JAX' if 'jax' in sys.modules else 'quick'))\n"
        f"sys.argv = ['{module}', '--help']\n"
        f"runpy.run_module('{module}', run_name='__main__', alter_sys=True)\n"
    )
    done = run("-c", program)
    assert done.returncode == 0 and done.stdout.endswith("quick\n"), done.stdout[-200:] + done.stderr


# Flags without a default: required ones, settings, and --help itself.
REQUIRED = {
    "--help",
    "--config.KEY",
    "--out",
    "--model",
    "--checkpoint",
    "--data",
    "--media",
    "--source",
    "--tfds",
}


@pytest.mark.parametrize("module", sorted({module for module, *_ in COMMANDS.values()}))
def test_help_gives_the_default_of_every_flag(module):
    text = helped(module)
    entries = re.split(r"\n(?=  -)", text)[1:]
    names = {re.search(r"--[][a-z.A-Z-]+", entry)[0]: entry for entry in entries}
    usage = set(re.findall(r"--[a-z][a-z-]*", text[: text.index("\n\n")])) if "usage: " in text else set()
    assert usage <= names.keys() and names
    for name, entry in names.items():
        text = " ".join(entry.split())  # "(cpu ": a default for each preset
        assert re.search("default: |[(]required[)]|[(]cpu ", text) or name in REQUIRED, entry


@pytest.mark.parametrize(("module", "flag"), [("vaejax.main", "--workdir"), ("vaejax.plan", "--topology")])
def test_help_lists_flags_and_configurations(module, flag):
    shown = helped(module)
    for part in (f"python -m {module} --config=", "  --config: ", f"  {flag}: ", "docs/configuration.md"):
        assert part in shown
    assert ", ".join(shipped_names()) in shown
