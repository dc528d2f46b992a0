"""The probe: how well a small diffusion model learns on a codec's latents, for a fixed budget."""

SCORES = ("probe_kernel", "probe_frechet", "probe_loss", "probe_explained")  # the names that a run can follow
