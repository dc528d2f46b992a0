"""vaejax: one VAE for images and videos, for latent diffusion, trained with JAX."""

__version__ = "0.1.0"


def load(path, *, step=None, dtype="", tile=0, overlap=None, devices=None):
    """Opens a trained VAE: frames to latents and back.

    Args:
      path: 'RUN', 'RUN/checkpoints/STEP' or a folder of vaejax.export.
      step: of a run, a completed checkpoint's; None takes the path's, or the last.
      dtype: of the computation, 'float32' or 'bfloat16'; '' takes the one it was trained with.
      tile: side of square tiles in pixels, for frames that do not fit; 0 takes frames whole.
      overlap: of tiles, pixels; None takes what makes tiles exact where the network allows it.
      devices: of JAX, among which the height of every frame is split; None is one device.

    Returns:
      A `vaejax.codec.codec.Codec`.

    Raises:
      vaejax.errors.InputError: one line, where there is none.
    """
    # Imported here: the version needs no JAX.
    from vaejax.codec.codec import Codec
    from vaejax.codec.load import open_trained

    return Codec(open_trained(str(path), step, dtype), tile=tile, overlap=overlap, devices=devices)
