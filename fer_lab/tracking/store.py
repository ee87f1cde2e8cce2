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
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fer_lab.core.console import note
from fer_lab.core.errors import FerLabError, InputError, NotFound, Unreachable
from fer_lab.data import faces
from fer_lab.tracking.address import check_reachable, redact, sqlite_path, store_uri
from fer_lab.tracking.database import initialise
from fer_lab.tracking.failures import LIBRARIES, is_outage, is_refusal, library_of, said
from fer_lab.tracking.importing import importing
from fer_lab.tracking.run import END_REASON, Applier, Run, forgiving
from fer_lab.tracking.spool import waiting

LEDGER_EXPERIMENT = "fer-ledger"
INTERNAL_EXPERIMENTS = "fer-"  # the ledger, comparisons, exports: not what one wants to look at first
STUDIES = "tags.`fer.kind` = 'study'"


def open_store(home: Path | None = None) -> Store:
    """Open the store, initialised at most once however many processes start together.

    Raises InputError within seconds when a server does not answer or the database cannot be used.
    """
    home = (home or faces.home()).absolute()
    uri = store_uri(home)
    if uri.startswith("sqlite:"):
        initialise(sqlite_path(uri))
    else:
        check_reachable(uri)
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
        return sqlite_path(self.uri).parent / "artifacts" if self.local else None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock that all processes of this machine share (of a server's clients on other machines it knows nothing)."""
        from filelock import FileLock

        folder = sqlite_path(self.uri).parent if self.local else self.home / "mlruns" / "locks"
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
            if library_of(error) not in LIBRARIES:
                raise
            text = said(error)
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
        info = self.run_info(run_id)
        with self.errors(f"resume run {run_id}"):
            self.client.update_run(run_id, status="RUNNING")
        if END_REASON in info["tags"]:
            self.forget_end(run_id)
        return Run(self, run_id, resumed=True)

    def forget_end(self, run_id: str) -> None:
        """Remove why a run ended before; another worker may have been quicker."""
        with suppress(NotFound), self.errors(f"go on with run {run_id}"):
            self.client.delete_tag(run_id, END_REASON)

    def run_info(self, run_id: str) -> dict[str, Any]:
        """status, tags, params, metrics (last values), parent, name, experiment, start_time and end_time of a run."""
        with self.errors(f"read run {run_id}"):
            try:
                return _info(self.client.get_run(run_id))
            except Exception as error:
                if not is_refusal(error):  # an outage, or a log-in that keeps us out: nothing is known of the run
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
                sent += spool.replay(forgiving(Applier(self, spool.run_id, resumed=True), spool.run_id))
            except Exception as error:
                note(f"note: what waits for run {spool.run_id} could not be sent yet: {said(error)[:200] or type(error).__name__}")
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


def newest_study(store: Store) -> str | None:
    """The experiment id of the newest study, or of the newest run when there is no study; None in an empty store."""
    with store.errors("find the newest study"):
        ids = [e.experiment_id for e in store.client.search_experiments() if not e.name.startswith(INTERNAL_EXPERIMENTS)]
        for query in (STUDIES, ""):
            newest = store.client.search_runs(ids, query, max_results=1, order_by=["attributes.start_time DESC"]) if ids else []
            if newest:
                return str(newest[0].info.experiment_id)
    return None


def export_line(store: Store) -> str:
    """The shell line that points MLflow's own commands at this store (without a password)."""
    return f"MLFLOW_TRACKING_URI={shlex.quote(store.shown_uri)}"


def user() -> str:
    """The name of whoever runs this."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container without a passwd entry
        return "unknown"


def _report_stray(store: Store) -> None:
    stray = Path("mlflow.db").absolute()
    if stray.is_file() and not (store.local and sqlite_path(store.uri) == stray):
        note(f"note: {stray} is a stray store: an MLflow call without a tracking URI made it. Set {export_line(store)}")


def _info(run: Any) -> dict[str, Any]:
    tags = dict(run.data.tags)
    return {
        "run_id": run.info.run_id, "name": run.info.run_name, "status": run.info.status, "tags": tags,
        "params": dict(run.data.params), "metrics": dict(run.data.metrics), "parent": tags.get("mlflow.parentRunId"),
        "experiment_id": run.info.experiment_id, "start_time": run.info.start_time, "end_time": run.info.end_time,
    }  # fmt: skip


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
