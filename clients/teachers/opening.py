"""Opening the teacher that a site's settings name. Each kind's own libraries are imported when it is asked for."""

from consilium.clients.settings import SiteHome
from consilium.clients.teachers import Teacher
from consilium.clients.teachers.fitted import Ask, FittedTeacher
from consilium.clients.teachers.settings import (
    CallableSettings,
    CheckpointSettings,
    CommandSettings,
    ForeignSettings,
    ModuleSettings,
    MonaiBundleSettings,
    NnunetSettings,
    OnnxSettings,
    ServedSettings,
    TorchExportSettings,
    TorchScriptSettings,
)
from consilium.clients.teachers.tempered import TemperedTeacher
from consilium.common.errors import SettingsError
from consilium.common.temperature import LEVELS_CLIP, LOGITS_CLIP


def open_teacher(home: SiteHome) -> Teacher:
    """Open a site's teacher as it answers studies, at its temperature.

    Raises
    ------
    ConsiliumError
        If it is not there, damaged, or not what the settings say; the kinds' own modules tell.
    """
    settings = home.settings.teacher
    teacher = open_untempered(home)
    return teacher if settings.temperature == 1.0 else TemperedTeacher(teacher, settings.temperature, clip(home))


def clip(home: SiteHome) -> float:
    """Tell how close to 0 and 1 the teacher's probabilities are believed; see `temper`."""
    return LOGITS_CLIP if home.settings.teacher.has_logits else LEVELS_CLIP


def open_untempered(home: SiteHome) -> Teacher:
    """Open a site's teacher at temperature 1; see `open_teacher`."""
    settings = home.settings.teacher
    if isinstance(settings, CheckpointSettings):
        from consilium.clients.teachers.checkpoint import CheckpointTeacher

        return CheckpointTeacher(home.teacher, settings, home.settings.training.device)
    if isinstance(settings, NnunetSettings):
        from consilium.clients.teachers import nnunet

        settings = nnunet.with_channels(settings, home.folder, home.settings.labels)
    return FittedTeacher(_ask(home, settings), settings, len(home.settings.labels))


def _ask(home: SiteHome, settings: ForeignSettings) -> Ask:
    folder, device = home.folder, home.settings.training.device
    if isinstance(settings, ModuleSettings):
        from consilium.clients.teachers import module

        return module.opened(settings, folder, device)
    if isinstance(settings, OnnxSettings):
        from consilium.clients.teachers import onnx

        return onnx.opened(settings, folder, device, home.settings.training.threads)
    if isinstance(settings, TorchExportSettings):
        from consilium.clients.teachers import torch_export

        return torch_export.opened(settings, folder, device)
    if isinstance(settings, TorchScriptSettings):
        from consilium.clients.teachers import torchscript

        return torchscript.opened(settings, folder, device)
    if isinstance(settings, CallableSettings):
        from consilium.clients.teachers import callable as function

        return function.opened(settings, folder)
    if isinstance(settings, CommandSettings):
        from consilium.clients.teachers import command

        return command.opened(settings, folder, home.settings.labels)
    if isinstance(settings, ServedSettings):
        from consilium.clients.teachers import served

        return served.opened(settings, folder)
    if isinstance(settings, MonaiBundleSettings):
        from consilium.clients.teachers import monai_bundle

        return monai_bundle.opened(settings, folder, device)
    if isinstance(settings, NnunetSettings):
        from consilium.clients.teachers import nnunet

        return nnunet.opened(settings, folder, device)
    raise SettingsError(f"no teacher is opened for {type(settings).__name__}")
