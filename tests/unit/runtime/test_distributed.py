"""Agreement of two real processes, and the devices of a process."""

import json
import os
import signal
import socket
import subprocess
import sys

from tests.support import processes
from vaejax.rundir.folder import RunFolder
from vaejax.rundir.lock import locked


def test_two_processes_stop_continue_and_refuse_together(tmp_path):
    with locked(RunFolder(tmp_path)):
        started = processes.start(2, 1, [str(tmp_path)], tmp_path, module="tests.support.agreeing")
        codes = processes.finish(started, 120)
    logs = [process.log.read_text() for process in started]
    assert codes == [0, 0], logs
    results = [json.loads(next(line for line in log.splitlines() if line.startswith("{"))) for log in logs]
    assert [result.pop("process 0 first") for result in results] == [0, 1]  # number of earlier calls
    first, second = (result.pop("waited") for result in results)
    assert first > 1 > second  # process 0 waited for the late process 1
    assert results[0] == results[1]
    assert results[0]["identical items"] == [3, None]
    assert results[0]["one fails"] == [1, "process 1: photo.jpg: no such file"]
    other_frames = "process 1 read different frames than process 0; accepted: the same files on all hosts"
    assert results[0]["other frames"] == [2, other_frames]
    assert results[0]["fewer items"] == [2, other_frames]
    assert results[0]["process 0 refused"] == "process 0 has no such folder"
    assert results[0]["damaged on one"] == [[2, 1], [True], ["2"]]
    assert f": process {os.getpid()} on " in results[0]["folder in use"]
    assert results[0]["other digest"].startswith("process 1 finds different photos than process 0")
    assert (
        results[0]["steps to agree after a resume"] < 10
    )  # not 100, as if 50,000 steps had passed in a second
    assert results[0]["steps to agree after a rollback"] == 0


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_the_only_task_on_a_node_sees_all_of_its_gpus():
    """JAX alone would show a task one GPU; the tasks of mpirun inherit the variables of Slurm."""
    cases = {  # SLURM_STEP_TASKS_PER_NODE, OMPI_COMM_WORLD_LOCAL_SIZE: visible GPUs
        ("1(x4)", ""): "all",
        ("2(x4)", ""): "1",
        ("1,2(x3)", ""): "1",  # two tasks on some nodes
        ("1(x4)", "2"): "1",  # two tasks of mpirun
        ("2(x4)", "1"): "all",
    }
    program = (
        "import json, os, sys, jax\n"
        "from vaejax.runtime import distributed\n"
        "for variables in json.loads(sys.argv[1]):\n"
        "    if not os.fork():\n"  # importing JAX once is quicker
        "        os.environ.update(variables)\n"
        "        distributed.initialize()\n"
        "        print(jax.config.values['jax_cuda_visible_devices'], flush=True)\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
    )
    environment = dict(os.environ, JAX_PLATFORMS="cpu", SLURM_JOB_ID="7", SLURM_STEP_NODELIST="localhost")
    environment |= {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "1"}
    variables = [
        {
            "SLURM_STEP_TASKS_PER_NODE": tasks,
            "OMPI_COMM_WORLD_LOCAL_SIZE": local,
            "JAX_COORDINATOR_PORT": free_port(),
        }
        for tasks, local in cases
    ]
    found = subprocess.run(
        [sys.executable, "-c", program, json.dumps(variables)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout.split() == list(cases.values())


def test_a_signal_before_training_listens_terminates_the_process():
    """JAX alone would catch the signal and continue."""
    program = "import sys, time; from vaejax.runtime import distributed; distributed.initialize();"
    program += "print('joined', flush=True); time.sleep(60)"
    environment = dict(os.environ, JAX_PLATFORMS="cpu", JAX_NUM_PROCESSES="1", JAX_PROCESS_ID="0")
    environment |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}"}
    started = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
    assert started.stdout.readline() == b"joined\n"
    started.terminate()
    assert started.wait(30) == -signal.SIGTERM
