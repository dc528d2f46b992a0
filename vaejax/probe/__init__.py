"""The probe: measures how well a small diffusion model learns the latents of a codec in a fixed budget."""

SCORES = ("probe_kernel", "probe_frechet", "probe_loss", "probe_explained")  # metrics of a training run
