"""A teacher that is a torch module: given as such in a script, or made by the Python code that a site names."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from consilium.clients.teachers import geometry, torch_model
from consilium.clients.teachers.fitted import Ask
from consilium.clients.teachers.importing import imported
from consilium.clients.teachers.settings import ModuleSettings
from consilium.common.errors import DataError, SettingsError
from consilium.common.training.device import choose_device

Model = Callable[[torch.Tensor], Any]


class ModuleTeacher:
    """A callable from images to masks, with the geometry it expects.

    Parameters
    ----------
    model
        Takes float32 (n, channels, size, size) and gives (n, K, h, w) as a tensor or array. A torch module is put in
        evaluation mode.
    size, channels
        Of its input; ``None`` takes the canonical grid's as they come.
    mean, std
        Its input is ``(pixel / 255 - mean) / std``; one value a channel, or one for all.
    logits
        Whether the output is to go through the logistic function.
    device
        Where the input is put.
    card
        What the coordinator may know.
    """

    def __init__(
        self,
        model: Model,
        *,
        size: int | None = None,
        channels: int | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        logits: bool = False,
        device: str = "cpu",
        card: Mapping[str, object] | None = None,
    ) -> None:
        if isinstance(model, torch.nn.Module):
            model.eval()
        self.card: Final[Mapping[str, object]] = dict(card or {"format": "module"})
        self._model: Final = model
        self._size, self._channels, self._logits, self._device = size, channels, logits, device
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)

    def predict(self, images: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """Segment images; see `Teacher`."""
        fitted = geometry.to_size(
            geometry.to_channels(images, self._channels or images.shape[1]), self._size or images.shape[-1]
        )
        with torch.inference_mode():
            pixels = torch.from_numpy(np.array(fitted)).to(self._device, torch.float32) / 255
            output = torch.as_tensor(self._model((pixels - self._mean) / self._std)).float()
            output = torch.sigmoid(output) if self._logits else output
        if output.ndim != 4 or len(output) != len(images):
            raise DataError(
                f"a teacher gives one array (n, K, h, w), here with n = {len(images)}; this one gave {tuple(output.shape)}"
            )
        return geometry.to_grid(np.asarray(output.cpu().numpy(), np.float32), images.shape[-1])


def opened(settings: ModuleSettings, folder: Path, device: str) -> Ask:
    """Make the module of a site's settings, with its weights.

    Raises
    ------
    SettingsError
        If its code cannot be imported, or makes no module.
    StateError
        If its weights cannot be read or do not fit.
    """
    factory = imported("teacher.factory", settings.factory, folder / settings.code if settings.code else None)
    try:
        module = factory(**settings.arguments)
    except Exception as error:  # whatever the site's code does
        raise SettingsError(
            f"teacher.factory = {settings.factory!r} failed with teacher.arguments {settings.arguments}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise SettingsError(
            f"teacher.factory = {settings.factory!r} must return a torch.nn.Module; got {type(module).__name__}"
        )
    if settings.weights:
        torch_model.load_state(module, folder / settings.weights)
    where = choose_device(device)
    return torch_model.asked(module.to(where).eval(), where)
