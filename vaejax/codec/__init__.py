"""Encodes and decodes arrays, streams, large frames and files with a trained VAE; `vaejax.load` opens one."""
