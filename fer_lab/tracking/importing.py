"""Importing mlflow quietly: no telemetry, time-outs that suit a training loop, the missing extra by its name."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fer_lab.core.errors import MissingPart

ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # MLflow's own: 120 s and 7 retries, minutes inside a training loop
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_UV_AUTO_DETECT": "false",  # else project files are copied into models
    "MLFLOW_LOG_UV_FILES": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # "View run … at" and the server's address, password and all
    "GIT_PYTHON_REFRESH": "quiet",
}


@contextmanager
def importing(purpose: str) -> Iterator[None]:
    """Import mlflow quietly: ENVIRONMENT where the user has set nothing, no deprecation warnings; says which extra is missing."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # mlflow's models use an SQLAlchemy option that 2.1 deprecates
        try:
            yield
        except ImportError as error:
            raise MissingPart(f"mlflow ({error.name or error})", "lab", purpose) from None
