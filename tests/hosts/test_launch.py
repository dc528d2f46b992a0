"""Launch scripts pass ShellCheck and handle exit codes, and their examples fit the devices they name."""

import importlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

import kubernetes_validate
import pytest
import yaml

from tests.support.processes import ROOT
from vaejax.data.bucket import buckets_of

LAUNCH = ROOT / "launch"
SCRIPTS = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
    shellcheck = shutil.which(
        "shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    found = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def again(tmp_path, command, **environment):
    """The exit code of again.sh, the number of runs of the command, and stderr."""
    counted = f"echo run >> {tmp_path}/runs; n=$(wc -l < {tmp_path}/runs); {command}"
    found = subprocess.run(
        [LAUNCH / "again.sh", tmp_path, "bash", "-c", counted],
        env=dict(os.environ, PAUSE="0", **environment),
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode, len((tmp_path / "runs").read_text().split()), found.stderr


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_finished_wrong_or_interrupted_command_is_not_repeated(tmp_path, code):
    assert again(tmp_path, f"exit {code}")[:2] == (code, 1)


def test_a_stopped_or_crashed_command_is_repeated(tmp_path):
    assert again(tmp_path, "((n < 3)) && exit 75; ((n < 5)) && kill -9 $$; exit 0")[:2] == (0, 5)


def test_crashes_without_a_new_checkpoint_end_the_repetition(tmp_path):
    code, runs, stderr = again(tmp_path, "exit 1", TRIES="2")
    assert (code, runs) == (1, 2) and "gave up: 2 crashes" in stderr
    (tmp_path / "runs").unlink()
    progress = f"mkdir -p {tmp_path}/checkpoints/$((n < 4 ? n : 4)); exit 1"
    assert again(tmp_path, progress, TRIES="2")[:2] == (1, 6)  # four with a new checkpoint, two without


def test_the_jobset_has_known_fields_and_its_jobs_are_valid_kubernetes_jobs():
    """The schemas of Kubernetes validate the Job; the JobSet's fields are those of its documentation."""
    jobset = yaml.safe_load((LAUNCH / "gke.yaml").read_text())
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset["spec"]) <= {"failurePolicy", "replicatedJobs", "network", "successPolicy", "suspend"}
    policy = jobset["spec"]["failurePolicy"]
    assert set(policy) <= {"maxRestarts", "rules", "restartStrategy"}
    for rule in policy["rules"]:
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule) <= {"action", "name", "onJobFailureReasons", "targetReplicatedJobs"}
    for replicated in jobset["spec"]["replicatedJobs"]:
        assert set(replicated) <= {"name", "replicas", "template", "dependsOn", "groupName"}
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}} | replicated["template"]
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        assert job["spec"]["parallelism"] == job["spec"]["completions"]


@pytest.mark.parametrize("more", [(), ("--config.steps=9", "--config.data.media=a folder")])
def test_the_slice_runs_the_given_command(tmp_path, more):
    """A fake gcloud records the commands for the workers; the last one is executed here."""
    tools, home = tmp_path / "tools", tmp_path / "home"
    (home / "vaejax" / "launch").mkdir(parents=True)
    tools.mkdir()
    (home / "vaejax" / "launch" / "again.sh").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\" >~/asked\n")
    (tools / "gcloud").write_text('#!/bin/bash\necho "${@: -1}" >>"$LOG"; echo READY\n')
    for tool in (tools / "gcloud", home / "vaejax" / "launch" / "again.sh"):
        tool.chmod(0o755)
    environment = {"TPU": "mine", "ZONE": "here", "TYPE": "v5litepod-16", "BUCKET": "b", "HOME": str(home)}
    environment |= {"REPOSITORY": "r", "LOG": str(tmp_path / "log"), "PATH": f"{tools}:{os.environ['PATH']}"}
    subprocess.run(
        [LAUNCH / "tpu_pod.sh", "configs/joint.py:large", "joint", *more], env=environment, check=True
    )
    install, run = (tmp_path / "log").read_text().split("--command=")[1:]
    subprocess.run(["bash", "-n"], input=install, text=True, check=True)
    subprocess.run(["bash", "-c", f"{run}\nwait"], env=environment, cwd=home, check=True)
    asked = (home / "asked").read_text().splitlines()
    assert asked[0] == asked[6].removeprefix("--workdir=") == f"{home}/bucket/joint"
    assert asked[2:] == [
        *("-m", "vaejax.main", "--multihost", "--config=configs/joint.py:large"),
        *(f"--workdir={home}/bucket/joint", *more),
    ]


def examples():
    """(file, configuration, devices, flags) of the example in each launch file."""
    job = yaml.safe_load((LAUNCH / "gke.yaml").read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    chips = job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in container["args"])
    yield "gke.yaml", flags["config"], chips, container["args"]
    text = (LAUNCH / "tpu_pod.sh").read_text().replace("\\\n#", "")
    chips, config, flags = re.search(r"TYPE=v5litepod-(\d+) .*?tpu_pod.sh (\S+) \S+ +(.*)", text).groups()
    yield "tpu_pod.sh", config, int(chips), flags.split()
    text = (LAUNCH / "slurm.sbatch").read_text().replace("\\\n#", "")
    asks = r"sbatch --nodes=(\d+) --gpus-per-node=(\d+) \S+ (\S+) \S+ (.*)"
    nodes, gpus, config, flags = re.search(asks, text).groups()
    yield "slurm.sbatch", config, int(nodes) * int(gpus), flags.split()
    nodes, gpus, config, flags = re.search(asks, (ROOT / "README.md").read_text()).groups()
    yield "README.md", config, int(nodes) * int(gpus), flags.split()


@pytest.mark.parametrize("example", list(examples()), ids=lambda example: example[0])
def test_an_example_fits_its_devices(example):
    _, path, devices, flags = example
    file, _, variant = path.partition(":")
    config = importlib.import_module(f"vaejax.configs.{pathlib.Path(file).stem}").get_config(variant)
    for flag in flags:
        key, _, value = flag.removeprefix("--config.").partition("=")
        if key.startswith("mesh."):
            config.mesh[key.removeprefix("mesh.")] = int(value)
    mesh = config.mesh
    assert devices % (mesh.fsdp * mesh.space) == 0
    assert buckets_of(config, devices // mesh.space, mesh.space)
    assert any("config.data.media=" in flag for flag in flags)
