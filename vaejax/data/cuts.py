"""Finds the cuts of a clip, with PySceneDetect's content detector on the frames that vaejax decodes."""

import importlib.util
from collections.abc import Iterator
from typing import Any

import av
from av.video.reformatter import Interpolation, VideoReformatter

from vaejax.errors import InputError

INSTALL = "pip install 'vaejax[scenes]'"
# A cut changes the luma by at least LEAST of 255 levels, and by at least RATIO times the mean of the WINDOW
# changes on each side. Hue and saturation do not count: in a fade to black, they are noise.
RATIO, LEAST, WINDOW = 3.0, 15.0, 2
WIDTH = 256  # pixels to which wider frames are scaled, as PySceneDetect does


def check(cuts: bool, scan: str, command: bool = False) -> None:
    """Checks that cuts can be found if they are asked for.

    Args:
      cuts: whether they are.
      scan: the kind of scan, 'full' or 'headers'.
      command: whether flags of a command named the two, not settings; for error messages.

    Raises:
      InputError: if PySceneDetect is not installed, or the scan decodes no clips.
    """
    if not cuts:
        return
    name, none = ("--cuts", "no --cuts") if command else ("data.cuts = True", "data.cuts = False")
    if scan != "full":
        kind = "--scan=" if command else "data.scan = "
        raise InputError(
            f"{name} with {kind}{scan}: only decoding whole clips finds cuts; accepted: {kind}full, or {none}"
        )
    if importlib.util.find_spec("scenedetect") is None:
        raise InputError(f"{name}: PySceneDetect is not installed; accepted: {INSTALL}, or {none}")


class CutFinder:
    """Finds the cuts of one clip, frame by frame.

    It is the adaptive form of the content detector. The plain form has one threshold, and none separates cuts
    from fast pans: see docs/data.md.
    """

    def __init__(self):
        from scenedetect.detectors import AdaptiveDetector

        self._detector = AdaptiveDetector(
            adaptive_threshold=RATIO,
            min_scene_len=0,  # by default, of two cuts within 15 frames one is left out
            window_width=WINDOW,
            min_content_val=LEAST,
            luma_only=True,
        )
        self._reformatter = VideoReformatter()
        self._size: tuple[int, int] | None = None
        self._times: list[float] = []
        self._pixels: Any = None
        self._cuts: list[float] = []

    def add(self, time: float, picture: av.VideoFrame) -> None:
        """Takes the next frame, which appears at `time`, in seconds after the first."""
        if self._size is None:
            width = min(WIDTH, picture.width)
            self._size = width, max(1, round(picture.height * width / picture.width))
        self._pixels = self._reformatter.reformat(
            picture, *self._size, "bgr24", interpolation=Interpolation.BILINEAR, threads=1
        ).to_ndarray()
        # The detector judges only frames that have WINDOW others on each side: hence the repetitions.
        for _ in range(1 if self._times else 1 + WINDOW):
            self._detect(time)

    def finish(self) -> list[float]:
        """The times of the cuts: those of the first frame after each, increasing."""
        for _ in range(WINDOW if self._times else 0):
            self._detect(self._times[-1])
        return self._cuts

    def _detect(self, time: float) -> None:
        from scenedetect.common import FrameTimecode

        number = FrameTimecode(len(self._times), 1.0)  # the frame's number; the rate has no effect
        self._times.append(time)
        for found in self._detector.process_frame(number, self._pixels):
            self._cuts.append(self._times[found.frame_num])


def scenes(start: float, stop: float, cuts: list[float], period: float) -> Iterator[tuple[float, float]]:
    """Divides a span of a clip at its cuts.

    Args:
      start: start of the span, in seconds after the clip's first frame.
      stop: time of the span's last frame, which is shown for one period.
      cuts: times of the first frame after each cut.
      period: mean period of the clip's frames, in seconds.

    Yields:
      (start, stop) of each scene. Like every span, it lasts until one period after its `stop`, which is the
      time of the next cut. Scenes shorter than a period are left out.
    """
    inside = [time for time in cuts if start < time < stop + period]
    for begin, end in zip([start, *inside], [*(time - period for time in inside), stop], strict=True):
        if begin <= end:
            yield begin, end
