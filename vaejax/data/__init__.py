"""Media files to batches of uint8 frames. Never imports a model, nor JAX: worker processes stay light."""
