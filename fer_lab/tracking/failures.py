"""What an error of MLflow, or of the libraries below it, means: an outage that passes, a refusal for good, a locked door."""

from __future__ import annotations

from fer_lab.tracking.address import redact

OUTAGE_CODES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED"}
# What only the store itself says, and says again when asked again: mlflow makes none of these codes out of a proxy's page
# (mlflow.utils.rest_utils.verify_rest_response). Of the answer to an upload it hands on the status alone.
REFUSAL_CODES = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"}
REFUSAL_STATUSES = {400, 413, 422}
LOCKED_CODES = {"PERMISSION_DENIED", "UNAUTHENTICATED"}
LOCKED_STATUSES = {401, 403, 407}
LIBRARIES = {"mlflow", "requests", "urllib3", "sqlalchemy"}  # whose errors are the store's


def is_outage(error: BaseException) -> bool:
    """Whether `error` means that the store is away for the moment."""
    library = library_of(error)
    if library == "mlflow":
        return getattr(error, "error_code", None) in OUTAGE_CODES
    if library == "requests":
        response = getattr(error, "response", None)
        return response is None or response.status_code >= 500 or response.status_code == 429
    return library == "urllib3" or isinstance(error, ConnectionError | TimeoutError)


def is_refusal(error: BaseException) -> bool:
    """Whether the store itself said no, and would say it again. A log-in or a proxy that keeps us out (401, 403, 404) may pass."""
    if library_of(error) == "requests":
        return getattr(getattr(error, "response", None), "status_code", None) in REFUSAL_STATUSES
    return library_of(error) == "mlflow" and getattr(error, "error_code", None) in REFUSAL_CODES


def is_locked_out(error: BaseException) -> bool:
    """Whether a log-in or a proxy keeps us out, so that nothing is known of what was asked for."""
    if library_of(error) == "requests":
        return getattr(getattr(error, "response", None), "status_code", None) in LOCKED_STATUSES
    return library_of(error) == "mlflow" and getattr(error, "error_code", None) in LOCKED_CODES


def library_of(error: BaseException) -> str:
    """The package that the error's class comes from."""
    return type(error).__module__.partition(".")[0]


def said(error: BaseException) -> str:
    """What an error of a library says, in one line and without passwords."""
    return redact(" ".join(str(error).split()))[:400]
