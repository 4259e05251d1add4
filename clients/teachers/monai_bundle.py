"""A teacher that is a MONAI bundle: its network and its weights. Its transforms are not used: the settings say what they do."""

from pathlib import Path

import torch

from consilium.clients.teachers import torch_model
from consilium.clients.teachers.fitted import Ask
from consilium.clients.teachers.settings import MonaiBundleSettings
from consilium.common.errors import SettingsError, StateError
from consilium.common.training.device import choose_device


def opened(settings: MonaiBundleSettings, folder: Path, device: str) -> Ask:
    """Build the bundle's network. A bundle's configuration is code: open your own bundles only.

    Raises
    ------
    SettingsError
        If MONAI is not installed, or the configuration has no such network.
    StateError
        If a file is missing or damaged, or the weights do not fit.
    """
    bundle = folder / settings.folder
    config = bundle / settings.config
    if not config.is_file():
        raise StateError(f"teacher.folder, teacher.config: there is no file {config}")
    try:
        from monai.bundle import ConfigParser
    except ImportError:
        raise SettingsError(
            'teacher.kind = "monai-bundle" needs MONAI: pip install "consilium[monai]" (or pip install monai)'
        ) from None
    try:
        parser = ConfigParser()
        parser.read_config(str(config))
        parser["bundle_root"] = str(bundle)
        network = parser.get_parsed_content(settings.network)
    except Exception as error:  # a configuration is code
        raise SettingsError(
            f"teacher.network = {settings.network!r} cannot be built from {config}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(network, torch.nn.Module):
        raise SettingsError(
            f"teacher.network = {settings.network!r} must name a network in {config}; it is a {type(network).__name__}"
        )
    torch_model.load_state(network, bundle / settings.weights)
    where = choose_device(device)
    return torch_model.asked(network.to(where).eval(), where)
