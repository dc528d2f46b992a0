"""The folder of a run: its files, its creation and its configuration."""

import json
import pathlib
from typing import Any

import jax

from vaejax import cli, files
from vaejax.config import Config, from_saved
from vaejax.errors import InputError
from vaejax.rundir import mirror as mirrors
from vaejax.rundir.mirror import Mirror
from vaejax.rundir.uploads import Uploads
from vaejax.runtime import distributed, storage


class RunFolder:
    """The folder of a run, DIR, and the paths of its files.

    Args:
      name: path or URL of the folder, DIR, or of one of its checkpoints, DIR/checkpoints/STEP.

    Attributes:
      path: absolute path of DIR. For a URL, that of a mirror on disk, without checkpoints; see mirror.py.
      step: STEP; None if `name` is DIR.
      mirror: the mirror of a run that trains in a bucket; None for others.
      uploads: what keeps the bucket up to date, on process 0 while such a run trains; None otherwise.
    """

    def __init__(self, name: str | pathlib.Path):
        self.mirror: Mirror | None = None
        self.uploads: Uploads | None = None
        path = pathlib.Path(mirrors.local(name)).absolute()
        at_step = path.parent.name == "checkpoints" and path.name.isdigit()
        self.path = path.parent.parent if at_step else path
        self.step = int(path.name) if at_step else None

    @classmethod
    def create(cls, workdir: str) -> "RunFolder":
        """Creates the folder of a run if it is missing; for a URL, an empty mirror.

        Raises:
          InputError: if `workdir` cannot be written, or is not the same folder on all hosts.
        """
        if storage.is_url(workdir):
            return cls._mirrored(workdir.rstrip("/"))
        folder = cls(cli.made_folder(workdir, "--workdir"))
        distributed.check_shared(folder.path)
        return folder

    @classmethod
    def _mirrored(cls, url: str) -> "RunFolder":
        if not all(url.partition("://")[2].partition("/")[::2]):
            raise InputError(f"--workdir={url}; accepted: a folder in a bucket, such as {url}/RUN")
        mirror = Mirror(url)
        for process, other in enumerate(distributed.all_gather(url)):
            if other != url:
                raise InputError(f"--workdir={url}, but {other} on process {process}; accepted: the same URL")
        folder = cls(mirror.path)
        folder.mirror = mirror
        return folder

    @property
    def name(self) -> str:
        """The absolute path or the URL of DIR, for people."""
        return mirrors.url_of(self.path) or str(self.path)

    def upload(self) -> None:
        """Uploads what has changed to the bucket of the run; does nothing for a run on disk.

        Raises:
          TrainingFailed: if the store refuses, or another process has taken over the run.
        """
        if self.uploads:
            self.uploads.flush()

    @property
    def metrics(self) -> pathlib.Path:
        """Metrics by step, split and bucket; written by rundir/metrics.py."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> pathlib.Path:
        """TensorBoard event files."""
        return self.path / "tensorboard"

    @property
    def panels(self) -> pathlib.Path:
        """Pictures and clips by step; written by rundir/panels.py."""
        return self.path / "panels"

    @property
    def goodput(self) -> pathlib.Path:
        """The time of the run by cause; written by rundir/goodput.py."""
        return self.path / "goodput.json"

    @property
    def wandb(self) -> pathlib.Path:
        """The files of Weights & Biases."""
        return self.path / "wandb"

    @property
    def wandb_id(self) -> pathlib.Path:
        """The run of Weights & Biases and its last step; written by rundir/wandb_sink.py."""
        return self.path / "wandb.json"

    @property
    def parameters(self) -> pathlib.Path:
        """The table of all parameters."""
        return self.path / "parameters.txt"

    @property
    def splits(self) -> pathlib.Path:
        """The held-out files; written by data/split.py."""
        return self.path / "splits.parquet"

    @property
    def mixture(self) -> pathlib.Path:
        """The weights of the sources since the first sample; written by data/mixture.py."""
        return self.path / "mixture.json"

    @property
    def init(self) -> pathlib.Path:
        """The model that the run started from, as an export; absent if it started from scratch."""
        return self.path / "init"

    @property
    def bad_steps(self) -> pathlib.Path:
        """Skipped updates and rollbacks."""
        return self.path / "bad_steps.jsonl"

    @property
    def bad_samples(self) -> pathlib.Path:
        """Files that could not be read."""
        return self.path / "bad_samples.jsonl"

    @property
    def profile(self) -> pathlib.Path:
        """XProf traces."""
        return self.path / "profile"

    def write_config(self, config: Config) -> None:
        """Writes config.json on process 0."""
        if jax.process_index() == 0:
            files.write_text(self.path / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")

    def read_config(self) -> Config:
        """Reads config.json, written by any version of vaejax.

        Raises:
          InputError: if there is no usable config.json.
        """
        try:
            saved: dict[str, Any] = json.loads((self.path / "config.json").read_text())
            saved["model"]  # required; any other section may be missing from an older run
            return from_saved(saved)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = getattr(error, "strerror", None) or "not a run's configuration"
            raise InputError(
                f"{self.name}/config.json: {reason}; accepted: the --workdir of a run"
            ) from error
