"""The tracking store: where runs are written.

    store = open_store()                       # MLFLOW_TRACKING_URI, or sqlite below FER_LAB_HOME / the current folder
    run = store.start_run("ferplus8", "trial-3", parent=study_id, params={"seed": "0"})
    run.log_metrics(0, {"val/accuracy": 0.81})
    run.end("FINISHED")

It never uses MLflow's fluent API: a fluent run is global to the process, ends as FINISHED when the process crashes, and
the default URI behind it is a new `./mlflow.db` in whatever folder one stands in.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import sqlite3
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from fer_lab.core.console import note
from fer_lab.core.errors import FerLabError, InputError, MissingPart, NotFound
from fer_lab.data import faces
from fer_lab.tracking.spool import Operation, Spool, waiting

Status = Literal["FINISHED", "FAILED", "KILLED"]

REACH_S = 3.0  # how long a server may take to say that it is there
RETRY_S = 30.0  # during an outage the server is tried again this often, by a thread: training does not wait for it
PARAMS_PER_BATCH = 100  # MLflow's limits per request
METRICS_PER_BATCH = 1000
PARAM_LENGTH = 6000
LEDGER_EXPERIMENT = "fer-ledger"
INTERNAL_EXPERIMENTS = "fer-"  # the ledger, comparisons, exports: not what one wants to look at first
STUDIES = "tags.`fer.kind` = 'study'"
DIGEST_LENGTH = 36  # of a dataset, in MLflow's record

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

OUTAGE_CODES = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "DEADLINE_EXCEEDED", "ABORTED"}
# What only the store itself says, and says again when asked again: mlflow makes none of these codes out of a proxy's page
# (mlflow.utils.rest_utils.verify_rest_response). Of the answer to an upload it hands on the status alone.
REFUSAL_CODES = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"}
REFUSAL_STATUSES = {400, 413, 422}
LOCKED_CODES = {"PERMISSION_DENIED", "UNAUTHENTICATED"}
LOCKED_STATUSES = {401, 403, 407}
LIBRARIES = {"mlflow", "requests", "urllib3", "sqlalchemy"}  # whose errors are the store's


class Unreachable(InputError):
    """The tracking server does not answer."""


def redact(text: str) -> str:
    """Hide the password of every URL in `text`, also one in which somebody forgot to quote `/` and `@`.

    >>> redact("postgresql+psycopg://ann:secret@db/mlflow")
    'postgresql+psycopg://ann:***@db/mlflow'
    """
    return re.sub(r"(://[^/\s:@]*):(?!\d{1,5}[/\s])\S*@", r"\1:***@", text)  # HOST:PORT/… has no password


def set_environment() -> None:
    """Silence telemetry and shorten time-outs, before mlflow is imported; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def importing(purpose: str) -> Iterator[None]:
    """Import mlflow quietly: no telemetry, no deprecation warnings of its own; says which extra is missing."""
    set_environment()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # mlflow's models use an SQLAlchemy option that 2.1 deprecates
        try:
            yield
        except ImportError as error:
            raise MissingPart(f"mlflow ({error.name or error})", "lab", purpose) from None


def store_uri(home: Path) -> str:
    """The store's URI: MLFLOW_TRACKING_URI, or sqlite at `home`/mlruns/mlflow.db; absolute.

    Raises InputError for a scheme that fer_lab does not work with.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    if not given:
        return f"sqlite:///{(home / 'mlruns' / 'mlflow.db').absolute().as_posix()}"
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


def open_store(home: Path | None = None) -> Store:
    """Open the store, initialised at most once however many processes start together.

    Raises InputError within seconds when a server does not answer or the database cannot be used.
    """
    home = (home or faces.home()).absolute()
    uri = store_uri(home)
    if uri.startswith("sqlite:"):
        _initialise(_sqlite_path(uri))
    else:
        _check_reachable(uri)
    store = Store(uri, home)
    if not store.local:
        with store.errors("open the store"):
            store.client.search_experiments(max_results=1)
    store.replay()
    _report_stray(store)
    return store


class Store:
    """An open store. Made by `open_store`."""

    def __init__(self, uri: str, home: Path) -> None:
        self.uri = uri
        self.home = home
        with importing("the tracking store"), self.errors("open the store"):
            from mlflow import MlflowClient

            if self.local:
                from mlflow.store.tracking import sqlalchemy_store  # noqa: F401
            self.client: Any = MlflowClient(tracking_uri=uri, registry_uri=uri)

    @property
    def shown_uri(self) -> str:
        """The URI without its password."""
        return redact(self.uri)

    @property
    def local(self) -> bool:
        """Whether the store is an sqlite file of this machine."""
        return self.uri.startswith("sqlite:")

    @property
    def artifacts(self) -> Path | None:
        """The artifact folder of a local store; a server knows its own."""
        return _sqlite_path(self.uri).parent / "artifacts" if self.local else None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock that all processes of this machine share (of a server's clients on other machines it knows nothing)."""
        from filelock import FileLock

        folder = _sqlite_path(self.uri).parent if self.local else self.home / "mlruns" / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        safe = re.sub(r"[^\w.-]", "_", name)
        with FileLock(folder / f".{safe}.lock"):
            yield

    @contextmanager
    def errors(self, purpose: str) -> Iterator[None]:
        """Turn MLflow's errors into ours, in one line and without passwords."""
        try:
            yield
        except FerLabError:
            raise
        except Exception as error:
            if _library(error) not in LIBRARIES:
                raise
            text = _said(error)
            if is_outage(error):
                raise Unreachable(f"cannot {purpose} at {self.shown_uri}: {text}") from None
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                raise NotFound(f"cannot {purpose} at {self.shown_uri}: {text}") from None
            raise InputError(f"cannot {purpose} at {self.shown_uri}: {text}") from None

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, created when absent with an absolute artifact folder."""
        with self.errors(f"open experiment {name!r}"):
            found = self.client.get_experiment_by_name(name)
            if found is not None:
                if found.lifecycle_stage == "deleted":
                    raise InputError(
                        f"experiment {name!r} was deleted; restore it with: mlflow experiments restore -x {found.experiment_id}"
                    )
                return str(found.experiment_id)
            folder = self.artifacts
            location = (folder / re.sub(r"[^\w.-]", "_", name)).as_uri() if folder else None
            tags = {
                "mlflow.experiment.primaryMetric.name": "val/accuracy",
                "mlflow.experiment.primaryMetric.greaterIsBetter": "True",
            }
            try:
                return str(self.client.create_experiment(name, artifact_location=location, tags=tags))
            except Exception as error:  # another process was faster
                if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":
                    raise
            return str(self.client.get_experiment_by_name(name).experiment_id)

    def start_run(
        self,
        experiment: str,
        name: str,
        *,
        parent: str | None = None,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Run:
        """Create a run, RUNNING, as a child of `parent` when given. Raises InputError when the store does not answer."""
        experiment_id = self.experiment_id(experiment)
        all_tags = {"mlflow.user": user(), "mlflow.source.name": _command(), "mlflow.source.type": "LOCAL"} | dict(tags or {})
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        with self.errors("start a run"):
            created = self.client.create_run(experiment_id, tags=all_tags, run_name=name)
        run = Run(self, created.info.run_id, resumed=False)
        if params:
            run.log_params(params)
        return run

    def resume_run(self, run_id: str) -> Run:
        """Continue a run: it is RUNNING again, and steps that it holds already are not logged twice."""
        self.run_info(run_id)
        with self.errors(f"resume run {run_id}"):
            self.client.update_run(run_id, status="RUNNING")
        return Run(self, run_id, resumed=True)

    def run_info(self, run_id: str) -> dict[str, Any]:
        """status, tags, params, metrics (last values), parent, name, experiment, start_time and end_time of a run."""
        try:
            with self.errors(f"read run {run_id}"):
                return _info(self.client.get_run(run_id))
        except InputError as error:
            if isinstance(error, Unreachable):
                raise
            raise NotFound(f"no run {run_id!r} in {self.shown_uri}") from None

    def children(self, parent_id: str) -> list[dict[str, Any]]:
        """The child runs of a run, oldest first, each as in `run_info`."""
        with self.errors(f"list the runs below {parent_id}"):
            experiment_id = self.client.get_run(parent_id).info.experiment_id
            query = f"tags.`mlflow.parentRunId` = '{parent_id}'"
            return [_info(run) for run in self._search_runs([experiment_id], query)]

    def find_runs(self, experiment: str, tags: Mapping[str, str]) -> list[dict[str, Any]]:
        """The runs of an experiment that carry all `tags`, oldest first; none when there is no such experiment."""
        with self.errors(f"search experiment {experiment!r}"):
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                return []
            query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
            return [_info(run) for run in self._search_runs([found.experiment_id], query)]

    def log_bundle(self, run: Run, folder: Path) -> None:
        """Upload a bundle folder below `bundle`, its manifest last: without a manifest it is not there."""
        files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.name == "MANIFEST.json", p))
        for path in files:
            below = path.parent.relative_to(folder).as_posix()
            run.log_file(path, "bundle" if below == "." else f"bundle/{below}")

    def download_run_folder(self, run_id: str, folder: str, dst: Path) -> Path:
        """Copy an artifact folder (or one file) of a run to `dst` and return it. Raises NotFound when the run has none."""
        self.run_info(run_id)
        with self.errors(f"list the artifacts of run {run_id}"):
            beside = self.client.list_artifacts(run_id, folder.rpartition("/")[0] or None)
        if folder and folder not in {item.path for item in beside}:
            raise NotFound(f"run {run_id} has no {folder!r}")
        with self.errors(f"download {folder} of run {run_id}"), tempfile.TemporaryDirectory(dir=_made(dst.parent)) as staging:
            fetched = Path(self.client.download_artifacts(run_id, folder, staging))
            _move_into_place(fetched, dst)
        return dst

    def replay(self) -> int:
        """Send what earlier processes could not send. Returns the number of operations."""
        sent = 0
        for spool in waiting(self.spool_folder):
            try:
                sent += spool.replay(_forgiving(Applier(self, spool.run_id, resumed=True), spool.run_id))
            except Exception as error:
                note(f"note: what waits for run {spool.run_id} could not be sent yet: {_said(error)[:200] or type(error).__name__}")
        if sent:
            note(f"note: {sent} logged operations of an outage were sent to {self.shown_uri}")
        return sent

    @property
    def spool_folder(self) -> Path:
        """Where operations wait during an outage of this server."""
        return self.home / "mlruns" / "spool" / hashlib.sha256(self.uri.encode()).hexdigest()[:12]

    def _search_runs(self, experiment_ids: list[str], query: str) -> Iterator[Any]:
        token = None
        while True:
            page = self.client.search_runs(
                experiment_ids, query, max_results=1000, order_by=["attributes.start_time ASC"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return


class Run:
    """A live run. Every call survives an outage of the server: what cannot be sent is spooled and sent later, in order.

    An outage costs its caller REACH_S once (the timeout and retries of ENVIRONMENT when it begins within a request); from then
    on a thread looks whether the server is back.
    """

    def __init__(self, store: Store, run_id: str, *, resumed: bool) -> None:
        self.id = run_id
        self._store = store
        self._apply = Applier(store, run_id, resumed=resumed)
        self._spool = Spool(store.spool_folder, run_id)
        self._sender: threading.Thread | None = None
        self.guard: Callable[[], None] | None = None
        """Called before each operation; what it raises (the run is somebody else's now) keeps the operation from the store."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log one step (an epoch) in one request. A (key, step) that the run holds already is skipped."""
        now = int(time.time() * 1000)
        rows = [[key, float(value), now, int(step)] for key, value in {**metrics, **_system_metrics()}.items()]
        for start in range(0, len(rows), METRICS_PER_BATCH):
            self._do({"op": "metrics", "rows": rows[start : start + METRICS_PER_BATCH]})

    def log_params(self, params: Mapping[str, object]) -> None:
        """Log parameters once; MLflow refuses another value later. Values are cut at 6 000 characters."""
        items = [(key, str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        for start in range(0, len(items), PARAMS_PER_BATCH):
            self._do({"op": "params", "params": dict(items[start : start + PARAMS_PER_BATCH])})

    def log_file(self, path: Path, folder: str = "") -> None:
        """Upload a file below the artifact folder `folder`."""
        self._do({"op": "file", "path": os.fspath(path), "folder": folder})

    def log_text(self, text: str, name: str) -> None:
        """Upload `text` as the artifact `name` (a posix path)."""
        folder, _, file = name.rpartition("/")
        with tempfile.TemporaryDirectory() as staging:
            path = Path(staging) / file
            path.write_text(text, encoding="utf-8", newline="\n")
            self.log_file(path, folder)

    def log_dataset(self, dataset_name: str, fingerprint: str, protocol: str, label_source: str, n: Mapping[str, int]) -> None:
        """Record which faces the run saw: name, fingerprint, protocol, label source and the number of faces per split."""
        record = {
            "name": dataset_name,
            "fingerprint": fingerprint,
            "protocol": protocol,
            "label_source": label_source,
            "n": dict(n),
        }
        self._do({"op": "dataset", **record})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._do({"op": "tags", "tags": {key: str(value) for key, value in tags.items()}})

    def end(self, status: Status = "FINISHED", reason: str | None = None) -> None:
        """End the run; `reason` says why it failed or was stopped."""
        if reason:
            self.set_tags({"end_reason": reason})
        self._do({"op": "end", "status": status, "time": int(time.time() * 1000)})
        if self._spool.pending:  # the last chance to send what waits
            why = self._try(self._send_waiting)
            if why:
                note(f"note: {self._store.shown_uri} {why}; the next command sends what waits for run {self.id}")

    def _do(self, operation: Operation) -> None:
        if self.guard is not None:
            self.guard()
        if self._spool.pending or not self._is_sent(operation):
            self._spool.append(operation)
            if self._sender is None or not self._sender.is_alive():
                self._sender = threading.Thread(target=self._keep_sending, name=f"spool-{self.id}", daemon=True)
                self._sender.start()

    def _is_sent(self, operation: Operation) -> bool:
        """Perform the operation now; False when it has to wait."""
        why = self._try(lambda: self._apply(operation))
        if why:
            note(f"note: {self._store.shown_uri} {why}; run {self.id} goes on and is logged to {self._store.spool_folder}")
        return why is None

    def _keep_sending(self) -> None:
        while self._spool.pending:
            time.sleep(RETRY_S)
            self._try(self._send_waiting)

    def _send_waiting(self) -> None:
        sent = self._spool.replay(_forgiving(self._apply, self.id))
        if sent:
            note(f"note: {self._store.shown_uri} answers again; {sent} operations sent")

    def _try(self, send: Callable[[], None]) -> str | None:
        """Send now; returns None, or why it has to wait. What the store refuses for good is raised."""
        try:
            if not reachable(self._store.uri):  # asked each time: a request to a server that hangs takes its timeout and retries
                return "does not answer"
            send()
        except InputError as error:  # of `reachable`: somebody answers, and lets nobody in
            return f"takes nothing for now ({error})"
        except Exception as error:
            if is_outage(error):
                return "does not answer"
            if is_refusal(error) or _library(error) not in LIBRARIES:
                with self._store.errors(f"log to run {self.id}"):
                    raise
            return f"takes nothing for now ({_said(error)})"
        return None


class Applier:
    """Performs operations on one run, each at most once: metrics that are there already are skipped."""

    def __init__(self, store: Store, run_id: str, *, resumed: bool) -> None:
        self._client = store.client
        self._run_id = run_id
        self._resumed = resumed
        self._known: set[str] = set()  # metric keys whose history was read
        self._seen: set[tuple[str, int]] = set()

    def __call__(self, operation: Operation) -> None:
        kind = operation["op"]
        getattr(self, f"_{kind}")(operation)

    def _metrics(self, operation: Operation) -> None:
        from mlflow.entities import Metric

        rows = operation["rows"]
        if self._resumed:
            for key in {row[0] for row in rows} - self._known:
                self._seen |= {(key, past.step) for past in self._client.get_metric_history(self._run_id, key)}
                self._known.add(key)
        fresh = [row for row in rows if (row[0], row[3]) not in self._seen]
        if fresh:
            self._client.log_batch(self._run_id, metrics=[Metric(*row) for row in fresh])
            self._seen |= {(row[0], row[3]) for row in fresh}

    def _params(self, operation: Operation) -> None:
        from mlflow.entities import Param

        self._client.log_batch(self._run_id, params=[Param(key, value) for key, value in operation["params"].items()])

    def _tags(self, operation: Operation) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(key, value) for key, value in operation["tags"].items()])

    def _file(self, operation: Operation) -> None:
        self._client.log_artifact(self._run_id, operation["path"], operation["folder"] or None)

    def _dataset(self, operation: Operation) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        facts = {key: operation[key] for key in ("fingerprint", "protocol", "label_source")}
        record = Dataset(
            name=operation["name"], digest=operation["fingerprint"][:DIGEST_LENGTH], source_type="fer_lab",
            source=json.dumps(facts), profile=json.dumps(operation["n"]),
        )  # fmt: skip
        tags = [InputTag("mlflow.data.context", "training"), *(InputTag(key, value) for key, value in facts.items())]
        self._client.log_inputs(self._run_id, datasets=[DatasetInput(record, tags)])

    def _end(self, operation: Operation) -> None:
        self._client.set_terminated(self._run_id, operation["status"], operation["time"])


def _forgiving(apply: Applier, run_id: str) -> Callable[[Operation], None]:
    """Leave out, and say so, what the store refuses (the run was deleted meanwhile), so that the rest is not held up."""

    def attempt(operation: Operation) -> None:
        try:
            apply(operation)
        except Exception as error:
            if not is_refusal(error):
                raise
            note(f"note: {operation['op']} of run {run_id} was refused and is lost: {_said(error)[:200]}")

    return attempt


def is_outage(error: BaseException) -> bool:
    """Whether `error` means that the store is away for the moment."""
    library = _library(error)
    if library == "mlflow":
        return getattr(error, "error_code", None) in OUTAGE_CODES
    if library == "requests":
        response = getattr(error, "response", None)
        return response is None or response.status_code >= 500 or response.status_code == 429
    return library == "urllib3" or isinstance(error, ConnectionError | TimeoutError)


def is_refusal(error: BaseException) -> bool:
    """Whether the store itself said no, and would say it again. A log-in or a proxy that keeps us out (401, 403, 404) may pass."""
    if _library(error) == "requests":
        return getattr(getattr(error, "response", None), "status_code", None) in REFUSAL_STATUSES
    return _library(error) == "mlflow" and getattr(error, "error_code", None) in REFUSAL_CODES


def is_locked_out(error: BaseException) -> bool:
    """Whether a log-in or a proxy keeps us out, so that nothing is known of what was asked for."""
    if _library(error) == "requests":
        return getattr(getattr(error, "response", None), "status_code", None) in LOCKED_STATUSES
    return _library(error) == "mlflow" and getattr(error, "error_code", None) in LOCKED_CODES


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _said(error: BaseException) -> str:
    """What an error of a library says, in one line and without passwords."""
    return redact(" ".join(str(error).split()))[:400]


def reachable(uri: str) -> bool:
    """Whether the server behind `uri` answers within seconds; true for sqlite."""
    try:
        if not uri.startswith("sqlite:"):
            _check_reachable(uri)
    except Unreachable:
        return False
    return True


def user() -> str:
    """The name of whoever runs this."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a passwd entry
        return "unknown"


def _check_reachable(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme in {"http", "https"}:
        request = urllib.request.Request(_without_credentials(uri) + "/health")
        try:
            with urllib.request.urlopen(request, timeout=REACH_S) as answer:
                answer.read(64)
        except urllib.error.HTTPError as error:
            if error.code == 403:
                raise InputError(
                    f"{redact(uri)} refuses the host name {parts.hostname!r} (403). "
                    f"Start it with --allowed-hosts {parts.netloc.rpartition('@')[2]}"
                ) from None
            if error.code >= 500:
                raise Unreachable(f"the tracking server {redact(uri)} answers {error.code}. Is it up?") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(
                f"the tracking server {redact(uri)} does not answer ({reason}). "
                "Start it, or unset MLFLOW_TRACKING_URI for a local store"
            ) from None
        return
    host, port = parts.hostname or "localhost", parts.port or (5432 if parts.scheme.startswith("postgresql") else 3306)
    try:
        socket.create_connection((host, port), timeout=REACH_S).close()
    except OSError as error:
        raise Unreachable(f"the database {redact(uri)} does not answer ({error}). Start it, or unset MLFLOW_TRACKING_URI") from None


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _sqlite_path(uri: str) -> Path:
    return Path(unquote(uri.removeprefix("sqlite:///")))


def _initialise(database: Path) -> None:
    """Create the database once: built beside its place under a lock, then renamed, so that a kill leaves nothing half-built."""
    from filelock import FileLock

    if _has_tables(database):
        return
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(database.with_name(f".{database.name}.lock")):
            if not _has_tables(database):
                _build(database)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"cannot create the store {database}: {error}. Set FER_LAB_HOME to a folder that can be written") from None


def _build(database: Path) -> None:
    with importing("a local store"):
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    note(f"note: creating the store {database}")
    temporary = database.with_name(f".{database.name}.new")
    temporary.unlink(missing_ok=True)
    artifacts = database.parent / "artifacts"
    artifacts.mkdir(exist_ok=True)
    store = SqlAlchemyStore(f"sqlite:///{temporary.as_posix()}", artifacts.as_uri())
    store.engine.dispose()
    connection = sqlite3.connect(temporary)
    try:
        connection.execute("PRAGMA journal_mode=WAL")  # stays in the file: readers do not wait for the writer
    finally:
        connection.close()
    temporary.replace(database)


def _has_tables(database: Path) -> bool:
    """Whether the file is a database of MLflow. Raises InputError when it is something else."""
    if not database.is_file() or database.stat().st_size == 0:
        return False
    try:
        connection = sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=30)
        try:
            found = connection.execute("SELECT name FROM sqlite_master WHERE name IN ('alembic_version', 'experiments')").fetchall()
        finally:
            connection.close()
    except sqlite3.DatabaseError as error:
        raise InputError(f"{database} is not an MLflow store ({error}). Move it away, or set FER_LAB_HOME") from None
    if not found:
        return False
    if len(found) != 2:
        raise InputError(f"{database} is a database, but not MLflow's. MLflow and Optuna need a file each")
    return True


def _report_stray(store: Store) -> None:
    stray = Path("mlflow.db").absolute()
    if stray.is_file() and not (store.local and _sqlite_path(store.uri) == stray):
        note(f"note: {stray} is a stray store: an MLflow call without a tracking URI made it. Set {export_line(store)}")


def export_line(store: Store) -> str:
    """The shell line that points MLflow's own commands at this store (without a password)."""
    return f"MLFLOW_TRACKING_URI={store.shown_uri}"


def _info(run: Any) -> dict[str, Any]:
    tags = dict(run.data.tags)
    return {
        "run_id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "tags": tags,
        "params": dict(run.data.params), "metrics": dict(run.data.metrics), "parent": tags.get("mlflow.parentRunId"),
        "experiment_id": run.info.experiment_id, "start_time": run.info.start_time, "end_time": run.info.end_time,
    }  # fmt: skip


def _system_metrics() -> dict[str, float]:
    """CPU, memory and GPU use under the names of MLflow's `System metrics` tab; empty without psutil."""
    try:
        import psutil
    except ImportError:
        return {}
    values = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),  # since the last call, that is: over the epoch
        "system/system_memory_usage_megabytes": psutil.virtual_memory().used / 1e6,
        "system/process_memory_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        values["system/gpu_0_memory_usage_megabytes"] = torch.cuda.max_memory_allocated() / 1e6
    return values


def _command() -> str:
    module = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None)
    return f"python -m {module}" if module else Path(sys.argv[0] or "python").name


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _move_into_place(source: Path, target: Path) -> None:
    """Rename a fetched folder or file to its name, replacing an older one."""
    import shutil

    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    shutil.move(source, target)


def newest_study(store: Store) -> str | None:
    """The experiment id of the newest study, or of the newest run when there is no study; None in an empty store."""
    with store.errors("find the newest study"):
        ids = [e.experiment_id for e in store.client.search_experiments() if not e.name.startswith(INTERNAL_EXPERIMENTS)]
        for query in (STUDIES, ""):
            newest = store.client.search_runs(ids, query, max_results=1, order_by=["attributes.start_time DESC"]) if ids else []
            if newest:
                return str(newest[0].info.experiment_id)
    return None
