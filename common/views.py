"""Views: a teacher looks at each image mirrored, smaller and larger as well, and answers with the mean.

``flip`` is the image and its mirror image, left for right; top and bottom are not exchanged, as in many kinds of medical images
they are not alike. ``flip-scale`` is the same also of the image shrunk to three quarters, its border pixels repeated around it,
and of its middle enlarged by a quarter; a pixel that a view does not show has the mean of the others.
"""

from collections.abc import Callable, Iterator
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

Views = Literal["one", "flip", "flip-scale"]
Pixels = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Pixels], Probabilities]

_ROUNDING: Final = 1e-5
SCALES: Final = {"flip": (1.0,), "flip-scale": (1.0, 0.75, 1.25)}


def look(predict: Predict, images: Pixels, views: Views) -> Probabilities:
    """Predict under several views.

    Parameters
    ----------
    predict
        uint8 (n, C, H, W) in, float32 (n, K, H, W) in [0, 1] out.
    images
        uint8 (n, C, H, W).
    views
        ``one`` leaves what `predict` says as it is, bit for bit.

    Returns
    -------
    NDArray
        float32 (n, K, H, W) in [0, 1]: the mean over the views.
    """
    if views == "one":
        return predict(images)
    answers = list(_answers(predict, images, SCALES[views]))
    total = np.zeros((*answers[0][0].shape[:2], *images.shape[2:]), np.float32)
    count = np.zeros(images.shape[2:], np.float32)
    for answer, place in answers:
        total[(..., *place)] += answer
        count[place] += 1
    mean = total / count
    inside = np.clip(mean, 0, 1)  # stretched weights sum to 1 up to rounding; more than that is a broken teacher's
    return np.asarray(np.where(np.abs(mean - inside) < _ROUNDING, inside, mean), np.float32)


def _answers(
    predict: Predict, images: Pixels, scales: tuple[float, ...]
) -> Iterator[tuple[Probabilities, tuple[slice, slice]]]:
    """Give each view's answer, put upright and to size again, and where in the image it lies."""
    height, width = images.shape[2:]
    for scale in scales:
        shape = (round(height * min(scale, 1)), round(width * min(scale, 1)))
        inner = (round(height / max(scale, 1)), round(width / max(scale, 1)))
        top, left = ((height - inner[0]) // 2, (width - inner[1]) // 2)
        place = (slice(top, top + inner[0]), slice(left, left + inner[1]))
        seen = images
        if scale < 1:
            above, before = (height - shape[0]) // 2, (width - shape[1]) // 2
            around = ((0, 0), (0, 0), (above, height - shape[0] - above), (before, width - shape[1] - before))
            seen = np.pad(_pixels(images, shape), around, mode="edge")
        elif scale > 1:
            seen = _pixels(images[(..., *place)], (height, width))
        for mirrored in (False, True):
            answer = predict(np.ascontiguousarray(seen[..., ::-1]) if mirrored else seen)
            upright = answer[..., ::-1] if mirrored else answer
            if scale < 1:
                upright = _stretched(
                    upright[..., above : above + shape[0], before : before + shape[1]], (height, width)
                )
            elif scale > 1:
                upright = _stretched(upright, inner)
            yield upright, place


def _pixels(images: Pixels, shape: tuple[int, int]) -> Pixels:
    return np.asarray(np.floor(_stretched(images.astype(np.float32), shape) + np.float32(0.5)).clip(0, 255), np.uint8)


def _stretched(planes: npt.NDArray[np.float32], shape: tuple[int, int]) -> npt.NDArray[np.float32]:
    tensor = torch.from_numpy(np.ascontiguousarray(planes))
    return np.asarray(interpolate(tensor, shape, mode="bilinear", align_corners=False, antialias=True).numpy())
