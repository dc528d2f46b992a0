"""Export of a trained VAE: weights, model card and standalone programs."""
