"""A teacher that is a Python function."""

from pathlib import Path

import numpy as np

from consilium.clients.teachers.fitted import Ask, Numbers
from consilium.clients.teachers.importing import imported
from consilium.clients.teachers.settings import CallableSettings


def opened(settings: CallableSettings, folder: Path) -> Ask:
    """Find the function.

    Raises
    ------
    SettingsError
        If it cannot be imported.
    """
    function = imported("teacher.function", settings.function, folder / settings.code if settings.code else None)

    def ask(numbers: Numbers) -> Numbers:
        return np.asarray(function(np.array(numbers)))  # a copy, which the function may write to

    return ask
