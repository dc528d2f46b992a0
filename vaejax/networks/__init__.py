"""Published pretrained networks that score or train a VAE."""
