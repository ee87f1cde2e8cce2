"""Where the store is: its URI, shown without its password, and whether anybody answers there."""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from fer_lab.core.errors import InputError, Unreachable

SECRETS = frozenset({"password", "sslpassword"})  # keys of a URL's query that libpq takes
INVALID_HOST = b"Invalid Host header"  # MLflow's words
REACH_S = 3.0  # how long a server may take to say that it is there


def redact(text: str) -> str:
    """Hide the password of every URL in `text`, also one in which somebody forgot to quote `/` and `@`.

    >>> redact("postgresql+psycopg://ann:secret@db/mlflow")
    'postgresql+psycopg://ann:***@db/mlflow'
    >>> redact("postgresql+psycopg://ann@db/mlflow?password=secret&sslmode=require")
    'postgresql+psycopg://ann@db/mlflow?password=***&sslmode=require'
    """
    text = re.sub(rf"([?&](?:{'|'.join(sorted(SECRETS))})=)[^&\s]*", r"\1***", text)
    return re.sub(r"(://[^/\s:@]*):(?!\d{1,5}[/\s])\S*@", r"\1:***@", text)  # HOST:PORT/… has no password


def store_uri(home: Path) -> str:
    """The store's URI: MLFLOW_TRACKING_URI, or sqlite at `home`/mlruns/mlflow.db; absolute.

    Raises InputError for a scheme that fer_lab does not work with.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return sqlite_uri((home / "mlruns" / "mlflow.db").absolute())
    try:
        parts = urlsplit(given)
        scheme, _ = parts.scheme, parts.port
    except ValueError:  # its text may quote a part of the password
        raise InputError(
            f"MLFLOW_TRACKING_URI={redact(given)!r} is not a URL; in a password, write %2F for / and %40 for @"
        ) from None
    if scheme == "sqlite":
        return f"sqlite:///{Path(given.removeprefix('sqlite:///')).absolute().as_posix()}"
    if scheme in {"http", "https"}:
        return given.rstrip("/")
    if scheme.startswith(("postgresql", "mysql")):
        return given
    raise InputError(
        f"MLFLOW_TRACKING_URI={redact(given)!r} cannot be used; give sqlite:///PATH, postgresql+psycopg://… or http(s)://…"
    )


def sqlite_uri(path: Path) -> str:
    """The URI of an sqlite file; SQLAlchemy unquotes it, and what stands behind a `?` is no path to it.

    >>> sqlite_uri(Path("/tmp/50%20?/mlflow.db"))
    'sqlite:////tmp/50%2520%3F/mlflow.db'
    """
    return f"sqlite:///{path.as_posix().replace('%', '%25').replace('?', '%3F')}"


def sqlite_path(uri: str) -> Path:
    """The file behind an sqlite URI."""
    return Path(unquote(uri.removeprefix("sqlite:///")))


def reachable(uri: str) -> bool:
    """Whether the server behind `uri` answers within seconds; true for sqlite."""
    try:
        if not uri.startswith("sqlite:"):
            check_reachable(uri)
    except Unreachable:
        return False
    return True


def check_reachable(uri: str) -> None:
    """Raise Unreachable when nobody answers at a server's `uri` within seconds, InputError when it refuses the host name."""
    parts = urlsplit(uri)
    if parts.scheme in {"http", "https"}:
        request = urllib.request.Request(_without_credentials(uri) + "/health")
        try:
            with urllib.request.urlopen(request, timeout=REACH_S) as answer:
                answer.read(64)
        except urllib.error.HTTPError as error:
            if error.code == 403 and INVALID_HOST in error.read(1024):  # any other 403 is for whoever has the right token
                raise InputError(
                    f"{redact(uri)} refuses the host name {parts.hostname!r} (403). "
                    f"Start it with --allowed-hosts {parts.netloc.rpartition('@')[2]}"
                ) from None
            if error.code >= 500:
                raise Unreachable(f"the tracking server {redact(uri)} answers {error.code}. Is it up?") from None
        except (OSError, ValueError, http.client.HTTPException) as error:  # the last: somebody answers who is no web server
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                return  # somebody answers; whose certificates count is MLflow's to say (REQUESTS_CA_BUNDLE, MLFLOW_TRACKING_…)
            raise Unreachable(
                f"the tracking server {redact(uri)} does not answer ({reason}). "
                "Start it, or unset MLFLOW_TRACKING_URI for a local store"
            ) from None
        return
    asked = parse_qs(parts.query)  # libpq takes host and port there too
    host = asked.get("host", [parts.hostname or "localhost"])[0]
    port = asked.get("port", [parts.port or (5432 if parts.scheme.startswith("postgresql") else 3306)])[0]
    if host.startswith("/"):
        return  # a socket of this machine
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except OSError as error:
        raise Unreachable(f"the database {redact(uri)} does not answer ({error}). Start it, or unset MLFLOW_TRACKING_URI") from None


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
