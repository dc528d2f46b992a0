"""vaejax: one VAE for images and videos, for latent diffusion, trained with JAX."""

__version__ = "0.1.0"
