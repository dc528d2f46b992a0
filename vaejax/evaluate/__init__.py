"""Evaluation of codecs: scores of reconstructions, metrics and statistics of latents."""
