"""The files in a run's folder: checkpoints, metrics, panels, console output."""
