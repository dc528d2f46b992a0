"""Published pretrained networks that score or train a VAE; none of them is trained here."""
