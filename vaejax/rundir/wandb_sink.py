"""The sink for Weights & Biases: the configuration, metrics, panels and clips of a run, each step once.

W&B can take nothing back, and a resumed run repeats the updates since its checkpoint. So a step is sent once
a checkpoint of that step or a later one is complete. The sink then reads metrics.jsonl and panels/, and gives
W&B all of a step in one row, whose W&B step is the number of updates done.

A killed run loses what W&B had in memory. So a new session asks what W&B holds, the server or the files of
offline sessions, and continues with the next step.
"""

import collections
import contextlib
import secrets
import shlex
from collections.abc import Iterator
from typing import Any

import jax

from vaejax import files
from vaejax.config import Config
from vaejax.errors import InputError, one_line
from vaejax.rundir import wandb_file
from vaejax.rundir.checkpoint import SavedCheckpoints
from vaejax.rundir.folder import RunFolder
from vaejax.runtime import distributed

WITHOUT_LOGIN = ("offline", "dryrun", "disabled")  # values of WANDB_MODE
FINISH_SECONDS = 120  # longest wait for the last uploads; the other processes of the run wait as long


@contextlib.contextmanager
def opened(folder: RunFolder, config: Config) -> Iterator["WandbSink | None"]:
    """Opens the sink of a run; all processes call it, and only process 0 gets a sink.

    Yields:
      The sink, which the context closes; None if report.wandb is ''.

    Raises:
      InputError: on all processes, see `WandbSink`.
    """
    wanted = config.report.wandb and jax.process_index() == 0
    if wanted and folder.mirror:
        folder.mirror.pull(("wandb", "panels"))  # what W&B holds, and what it may lack
    sink = distributed.main_process_first(lambda: WandbSink(folder, config) if wanted else None)
    try:
        yield sink
    except BaseException:
        if sink:
            sink.close(exit_code=1)
        raise
    if sink:
        sink.close()


class WandbSink:
    """Sends a run to Weights & Biases. The same run of W&B continues in every session.

    Args:
      folder: folder of the run. wandb.json in it has the project and the id of the run of W&B.
      config: configuration of the run; report.wandb is PROJECT or ENTITY/PROJECT.

    Raises:
      InputError: if the package wandb is missing, has no login, or cannot start the run.
    """

    def __init__(self, folder: RunFolder, config: Config):
        self._folder, self._checkpoints = folder, SavedCheckpoints(folder.path)
        self._failed = False
        project = config.report.wandb
        try:
            kept = files.read_json(folder.wandb_id)
        except (OSError, ValueError):
            kept = {}
        if kept.get("project") != project:
            kept = {"project": project, "id": secrets.token_hex(4), "sent": -1}
        self._begin(config, kept)
        if self._sent >= 0 and self._checkpoints.latest() is None:  # the checkpoints were deleted
            self._run.finish()
            self._begin(config, {"project": project, "id": secrets.token_hex(4), "sent": -1})

    def send(self) -> None:
        """Sends all steps that a complete checkpoint covers and that W&B does not hold.

        A failure is reported once and ends the sending of this session. Training goes on.
        """
        latest = self._checkpoints.latest()
        if self._failed or latest is None or latest <= self._sent:
            return
        try:
            for step, row in sorted(self._rows(latest).items()):
                self._run.log(row, step=step, commit=True)
            self._sent = latest
        except Exception as error:  # of any kind: the process of W&B ended, the disk is full, ...
            self._give_up(error)

    def close(self, exit_code: int = 0) -> None:
        """Sends the rest, waits until it is uploaded or written, and prints where the run is."""
        import wandb

        self.send()
        try:
            self._run.finish(exit_code)
            if not self._failed:
                self._keep()
        except Exception as error:
            self._give_up(error)
            with contextlib.suppress(Exception, SystemExit):
                wandb.teardown()  # otherwise the exit hook of wandb fails in the same way, with a traceback
        if self._run.offline:
            where = shlex.quote(f"{self._folder.name}/wandb")
            first = "copy it to a disk, then upload" if self._folder.mirror else "upload"
            distributed.say(f"wandb: offline; {first} with: wandb sync {where}")
        elif not self._run.disabled:
            distributed.say(f"wandb: {self._run.url}")

    def _begin(self, config: Config, kept: dict[str, Any]) -> None:
        self._kept = kept
        # Offline folders may be deleted once they are uploaded, so the file keeps the last step too.
        steps = [self._kept["sent"]]
        try:
            self._run = _started(self._folder, config, kept["id"])
            for path in self._folder.wandb.glob(f"offline-run-*/run-{kept['id']}.wandb"):
                steps.append(wandb_file.last_step(path))
        except Exception as error:  # wandb raises its own, pydantic's and the operating system's
            raise _refused(config, one_line(error)) from error
        steps.append(self._run.starting_step - 1)  # the step after the last one on the server
        self._sent = max(steps)
        self._keep()

    def _keep(self) -> None:
        """Stores what W&B is known to hold, unless WANDB_MODE=disabled drops everything."""
        if not self._run.disabled:
            files.write_json(self._folder.wandb_id, self._kept | {"sent": self._sent})

    def _rows(self, latest: int) -> dict[int, dict[str, Any]]:
        """The rows to send, of steps after the last one sent and up to `latest`: {step: {key: value}}."""
        import wandb

        rows: dict[int, dict[str, Any]] = collections.defaultdict(dict)
        for line in files.read_json_lines(self._folder.metrics):
            step, place = line.pop("step"), f"{line.pop('split')}/{line.pop('bucket')}"
            if self._sent < step <= latest:
                numbers = {name: value for name, value in line.items() if not isinstance(value, list)}
                rows[step] |= {f"{place}/{name}": _number(value) for name, value in numbers.items()}
        for folder in self._folder.panels.glob("[0-9]*"):
            step = int(folder.name)
            if self._sent < step <= latest:
                pictures, clips = sorted(folder.glob("*.png")), sorted(folder.glob("*.mp4"))
                rows[step] |= {f"panels/{path.stem}": wandb.Image(str(path)) for path in pictures}
                rows[step] |= {f"clips/{path.stem}": wandb.Video(str(path), format="mp4") for path in clips}
        return rows

    def _give_up(self, error: Exception) -> None:
        if not self._failed:
            distributed.say(
                f"wandb: {one_line(error)}; W&B gets no more data in this session, but metrics.jsonl and"
                " panels/ do, and the next session sends them"
            )
        self._failed = True


def _started(folder: RunFolder, config: Config, name: str) -> Any:
    """Starts or resumes the run of W&B with an id, `name`, without output and without questions."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError("the package is missing: pip install 'vaejax[wandb]'") from error
    mode = wandb.setup(wandb.Settings(silent=True)).settings.mode
    if mode not in WITHOUT_LOGIN and not wandb.login(prompt=False, verify=False):
        raise RuntimeError("no login")
    entity, _, project = config.report.wandb.rpartition("/")
    return wandb.init(
        entity=entity or None,
        project=project,
        id=name,
        name=folder.path.name,
        dir=str(folder.path),
        config=config.to_dict(),
        allow_val_change=True,  # a resumed run may have other settings
        resume="allow",
        reinit="create_new",  # leaves a run of the caller alone
        settings=wandb.Settings(
            silent=True, console="off", finish_timeout=FINISH_SECONDS, finish_timeout_raises=True
        ),
    )


def _refused(config: Config, reason: str) -> InputError:
    return InputError(
        f"report.wandb = {config.report.wandb!r}: {reason}; accepted: '', or PROJECT or ENTITY/PROJECT after"
        " `wandb login` or with WANDB_MODE=offline"
    )


def _number(value: Any) -> Any:
    """A number of metrics.jsonl, where those that are not finite are strings."""
    return float(value) if isinstance(value, str) else value
