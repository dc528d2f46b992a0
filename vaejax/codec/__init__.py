"""A trained VAE in use: arrays, streams, large frames and files. `vaejax.load` opens one."""
