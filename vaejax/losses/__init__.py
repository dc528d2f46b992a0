"""The training objective: reconstruction, perceptual, latent and adversarial terms."""
