"""Reads photos and clips, and makes batches of uint8 frames from them.

No module here imports a model. Only `sampler` and `pipeline` import JAX (through Grain), so processes that
only decode files start quickly.
"""
