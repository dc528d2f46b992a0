"""The probe: measures how well a small diffusion model learns a codec's latents within a fixed budget."""

SCORES = ("probe_kernel", "probe_frechet", "probe_loss", "probe_explained")  # names in a run's log
