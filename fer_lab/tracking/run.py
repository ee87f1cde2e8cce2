"""A live run of the store. What an outage holds up is spooled and sent later, in order, each operation at most once."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fer_lab.core.console import note
from fer_lab.core.errors import InputError, Interrupted
from fer_lab.tracking.address import reachable
from fer_lab.tracking.failures import LIBRARIES, is_outage, is_refusal, library_of, said
from fer_lab.tracking.spool import Operation, Spool

if TYPE_CHECKING:
    from fer_lab.tracking.store import Store

Status = Literal["FINISHED", "FAILED", "KILLED"]

RETRY_S = 30.0  # during an outage the server is tried again this often, by a thread: training does not wait for it
PARAMS_PER_BATCH = 100  # MLflow's limits per request
METRICS_PER_BATCH = 1000
END_REASON = "end_reason"  # the tag that says why a run did not end well
PARAM_LENGTH = 6000
DIGEST_LENGTH = 36  # of a dataset, in MLflow's record


class Run:
    """A live run. Every call survives an outage of the server: what cannot be sent is spooled and sent later, in order.

    An outage costs its caller `address.REACH_S` once (the timeout and retries of `importing.ENVIRONMENT` when it begins within a
    request); from then on a thread looks whether the server is back.
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
            self.set_tags({END_REASON: reason})
        self._do({"op": "end", "status": status, "time": int(time.time() * 1000)})
        if self._spool.pending:  # the last chance to send what waits
            why = self._try(self._send_waiting)
            if why:
                note(f"note: {self._store.shown_uri} {why}; the next command sends what waits for run {self.id}")

    def end_by(self, error: BaseException, reason: str | None = None) -> None:
        """End the run that `error` ended: KILLED where somebody stopped it, else FAILED for `reason` (the error's own text)."""
        if isinstance(error, KeyboardInterrupt | Interrupted):
            self.end("KILLED", "interrupted")
        else:
            self.end("FAILED", reason or str(error))

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
        sent = self._spool.replay(forgiving(self._apply, self.id))
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
            if is_refusal(error) or library_of(error) not in LIBRARIES:
                with self._store.errors(f"log to run {self.id}"):
                    raise
            return f"takes nothing for now ({said(error)})"
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


def forgiving(apply: Applier, run_id: str) -> Callable[[Operation], None]:
    """Leave out, and say so, what the store refuses (the run was deleted meanwhile), so that the rest is not held up."""

    def attempt(operation: Operation) -> None:
        try:
            apply(operation)
        except Exception as error:
            if not is_refusal(error):
                raise
            note(f"note: {operation['op']} of run {run_id} was refused and is lost: {said(error)[:200]}")

    return attempt


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
