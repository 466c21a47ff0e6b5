"""Videos of episodes: raw frames, and beside them the results of the search."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import cv2
import numpy as np

from rllib_efficientzero.playing.environment import PlayError, names_at, raw_picture
from rllib_efficientzero.playing.episodes import Moment

SMALLEST_HEIGHT = 320
"""Frames are enlarged to about this height, by a whole factor, so that the text beside them fits."""
PANEL = 260
FONT, SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.42
BACKGROUND, TEXT, BAR, CHOSEN, PRIOR = (28, 24, 21), (225, 225, 225), (216, 134, 74), (31, 122, 224), (130, 130, 130)
"""Colours in OpenCV's order, BGR."""


class VideoRecorder:
    """Writes an MP4 (MPEG-4) of one episode.

    Args:
        path: of the file.
        fps: decisions per second.

    Raises:
        PlayError: (by `add`) the file cannot be written.
    """

    def __init__(self, path: pathlib.Path, fps: float) -> None:
        self.path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self.num_frames = 0

    def add(self, moment: Moment) -> None:
        """Appends one frame: what is seen, and the decision made from it."""
        frame = annotated_frame(moment)
        if self._writer is None:
            self._size = (frame.shape[1], frame.shape[0])
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = cv2.VideoWriter(str(self.path), cv2.VideoWriter.fourcc(*"mp4v"), self._fps, self._size)
            if not self._writer.isOpened():
                raise PlayError(f"{self.path} cannot be written as a video.")
        if (frame.shape[1], frame.shape[0]) != self._size:
            frame = cv2.resize(frame, self._size)
        self._writer.write(frame)
        self.num_frames += 1

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None


def annotated_frame(moment: Moment) -> np.ndarray:
    """Draws one frame of the video: u8 `[H, W + PANEL, 3]` BGR, with even height and width."""
    picture = np.ascontiguousarray(raw_picture(moment.env, moment.observation)[..., ::-1])
    factor = max(1, round(SMALLEST_HEIGHT / picture.shape[0]))
    picture = cv2.resize(picture, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    height = max(picture.shape[0], SMALLEST_HEIGHT)
    height, width = height + height % 2, picture.shape[1] + picture.shape[1] % 2
    canvas = np.full((height, width + PANEL, 3), BACKGROUND, np.uint8)
    canvas[: picture.shape[0], : picture.shape[1]] = picture
    _draw_panel(canvas[:, width:], moment)
    return canvas


def _draw_panel(panel: np.ndarray, moment: Moment) -> None:
    """Writes into a view of the canvas: the numbers, and one bar of visits (and a thin one of priors) per action."""
    result, row = moment.result, moment.row
    action, names = int(result.index[row]), names_at(moment.env, result, row)
    drawing = np.ascontiguousarray(panel)
    lines = (
        f"step {moment.step}   return {moment.episode_return:g}",
        f"action {names[action]}",
        f"root value {result.root_value[row]:.3f}",
        f"network value {result.network_value[row]:.3f}",
    )
    for index, line in enumerate(lines):
        cv2.putText(drawing, line, (10, 20 + 18 * index), FONT, SCALE, TEXT, 1, cv2.LINE_AA)
    _draw_bars(drawing, names, result.policy[row], result.prior[row], action, top=96)
    panel[:] = drawing


def _draw_bars(
    drawing: np.ndarray, names: Sequence[str], policy: np.ndarray, prior: np.ndarray, action: int, top: int
) -> None:
    order = _fitting(policy, action, max(1, (drawing.shape[0] - top) // 14))
    step = min(26, (drawing.shape[0] - top - 6) // len(order))
    for index, number in enumerate(order):
        y = top + index * step
        colour = CHOSEN if number == action else BAR
        length = round((PANEL - 110) * float(policy[number]))
        cv2.rectangle(drawing, (100, y), (100 + length, y + step // 2), colour, cv2.FILLED)
        thin = round((PANEL - 110) * float(prior[number]))
        cv2.rectangle(drawing, (100, y + step // 2 + 1), (100 + thin, y + step // 2 + 2), PRIOR, cv2.FILLED)
        cv2.putText(drawing, names[number][:12], (8, y + step // 2 + 1), FONT, 0.36, TEXT, 1, cv2.LINE_AA)


def _fitting(policy: np.ndarray, action: int, count: int) -> list[int]:
    """Returns the actions to show, in order: all if there is room, else the likeliest and the chosen one."""
    if len(policy) <= count:
        return list(range(len(policy)))
    best = set(np.argsort(-policy, kind="stable")[: count - 1].tolist()) | {action}
    return sorted(best)
