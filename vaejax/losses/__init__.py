"""The training objective: reconstruction, latent and adversarial terms."""
