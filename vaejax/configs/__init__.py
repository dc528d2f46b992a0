"""Configurations that ship with vaejax; name them without a path: --config=demo."""
