"""Media files to batches of uint8 frames.

No module imports a model, and only `sampler` and `pipeline` load JAX (through Grain): worker processes stay
light.
"""
