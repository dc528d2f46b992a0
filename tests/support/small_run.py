"""The configuration of a run so small that it initializes and evaluates within seconds."""

from tests.support.models import SMALLEST
from vaejax.config import Config, check
from vaejax.configs import demo

BUCKET = "image_32x32"


def small_config(media, **changes) -> Config:
    """The tiny demo on images of 32x32 from a folder, without LPIPS and discriminators in the loss."""
    config = demo.get_config("tiny")
    config.data.media = str(media)
    config.data.buckets = {BUCKET: {"batch": 8}}
    config.data.workers = 0
    config.loss.weights.perceptual = config.loss.weights.adversarial = 0.0
    config.model.update(SMALLEST)
    config.eval.linear_samples = config.eval.latent_samples = 0
    config.eval.samples = 8
    config.steps = 12
    config.update_from_flattened_dict(changes)
    return check(config)
