"""The probe: how well a small diffusion model learns on a codec's latents, for a fixed budget."""
