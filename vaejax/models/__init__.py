"""The VAE and its discriminators."""
