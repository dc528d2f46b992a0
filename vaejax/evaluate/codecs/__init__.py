"""Codecs that can be evaluated: vaejax runs, published autoencoders and baselines."""

# The names that `registry.open_codec` accepts, for --help and errors.
NAMES = "folder of a run or export, diffusers:CLASS:PATH, linear, jpeg:Q, jpeg:matched, h264:CRF or identity"
