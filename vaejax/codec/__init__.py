"""Encodes and decodes arrays, streams, large frames and files with a VAE that `vaejax.load` opens."""
