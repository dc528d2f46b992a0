"""Scores of a codec, on reconstructions and on latents. Never imports the training loop."""
