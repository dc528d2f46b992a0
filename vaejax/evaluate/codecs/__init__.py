"""Codecs that can be evaluated: vaejax runs, published autoencoders and baselines."""
