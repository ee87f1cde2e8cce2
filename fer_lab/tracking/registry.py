"""The registry: versions of models, their aliases, and the way from a name to a verified bundle on this disk.

    models:/fer-ferplus-8@champion    models:/fer-ferplus-8/3    runs:/RUN_ID    path/to/a/bundle

A version never changes, and there is one version per (run, content digest, signer). A version is downloaded to a private
cache, its manifest is checked and compared with the digest stored on the version, and only then is anything parsed. Where
FER_LAB_SIGNED_BY names public keys, a bundle that none of them signed is refused, wherever it comes from.
MLflow's own loaders are never used here: they run code that stands in the artifact.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fer_lab.backends.bundle import MANIFEST, Bundle, Card, check_signer, open_bundle, open_trusted, sha256_of
from fer_lab.backends.signature import demanded
from fer_lab.core.console import note
from fer_lab.core.errors import InputError, IntegrityError, NotFound, Refused, Unreachable, nearest
from fer_lab.core.files import write_whole
from fer_lab.data import faces
from fer_lab.tracking.address import store_uri
from fer_lab.tracking.failures import is_locked_out, is_outage
from fer_lab.tracking.pyfunc import BUNDLE_PATH, write_model_folder
from fer_lab.tracking.store import LEDGER_EXPERIMENT, Store, open_store

MODEL_FOLDER = "model"
LEDGER_TAG = "ledger_run_id"
SIGNER_TAG = "signed_by"
SHOWN_METRICS = ("accuracy", "macro_recall", "macro_f1", "nll")


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    version: int
    digest: str  # of the bundle
    run_id: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """models:/NAME/VERSION."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True)
class Resolved:
    """A verified bundle and where it came from. For a path there is no name, version or run."""

    ref_shown: str  # models:/NAME/3, runs:/ID, or the path
    bundle: Bundle
    name: str | None = None
    version: int | None = None
    run_id: str | None = None


def model_name(card: Card) -> str:
    """fer-ferplus-8, fer-ferplus-5 or fer-synthetic-8: what a model was trained on is part of its name."""
    source = "ferplus" if card.label_source.startswith("ferplus") else re.sub(r"[^a-z0-9]+", "-", card.label_source.lower())
    return f"fer-{source}-{len(card.labels)}"


def register(
    store: Store, bundle_folder: Path, *, run_id: str | None, name: str | None = None, tags: Mapping[str, object] | None = None
) -> Version:
    """Register a bundle as a version and return it; the same (run, digest, signer) again returns the version that exists.

    Safe for any number of processes at once: on one machine they take turns, and through a server whoever finds that a
    lower version holds the same content removes its own. Raises IntegrityError when the bundle is damaged, InputError for a
    name that is none.
    """
    bundle = open_bundle(bundle_folder)
    name = _checked(name or model_name(bundle.card))
    ensure_model(store, name)
    with store.lock(f"register-{name}"):
        existing = _same(store, name, run_id, bundle)
        if existing:
            return existing
        with store.errors(f"register {name}"):
            return _create(store, bundle, name, run_id, {**_tags(bundle, run_id), **{k: str(v) for k, v in (tags or {}).items()}})


def run_of(store: Store, resolved: Resolved) -> str | None:
    """The run that a version of `resolved` is registered for, or None when this store does not hold it: trained elsewhere.

    Raises Refused when a run is named itself, as runs:/RUN_ID, and did not finish.
    """
    if resolved.run_id is None:
        return None
    try:
        status = store.run_info(resolved.run_id)["status"]
    except NotFound:
        return None
    if resolved.ref_shown.startswith("runs:/") and status != "FINISHED":
        raise Refused(
            f"run {resolved.run_id} is {status}; only a FINISHED run is registered. "
            f"Resume it with fer_lab.train --resume {resolved.run_id}"
        )
    return resolved.run_id


def ensure_model(store: Store, name: str) -> str:
    """Create the registered model when absent; returns the run id of its ledger.

    The name is unique in the registry and the ledger's run id is written in the same request, so that whoever comes
    first decides for all.
    """
    found = _registered(store, name)
    if found is None:
        run = store.start_run(LEDGER_EXPERIMENT, f"ledger of {name}", tags={"ledger_of": name})
        run.end()  # parameters can still be added; a run that stays RUNNING would look like a dead worker's
        try:
            with store.errors(f"create the model {name}"):
                store.client.create_registered_model(name, tags={LEDGER_TAG: run.id})
            return run.id
        except InputError:
            found = _registered(store, name)
            if found is None:
                raise
            if dict(found.tags).get(LEDGER_TAG) != run.id:  # else our own request was sent twice
                store.client.delete_run(run.id)
    ledger = dict(found.tags).get(LEDGER_TAG)
    if not ledger:
        raise InputError(f"the model {name} was not created by fer_lab (it has no ledger); register under another name")
    return str(ledger)


def versions(store: Store, name: str) -> list[Version]:
    """All versions of a model, oldest first; none when there is no such model."""
    return sorted(_search(store, f"name = '{_quoted(name)}'", f"list the versions of {name}"), key=lambda v: v.version)


def names_of_run(store: Store, run_id: str) -> list[str]:
    """Names under which the model of a run is registered by fer_lab, sorted: others have no ledger."""
    names = {v.name for v in _search(store, f"run_id = '{_quoted(run_id)}'", f"list the versions of run {run_id}")}
    models = {name: _registered(store, name) for name in sorted(names)}
    return [name for name, model in models.items() if model is not None and LEDGER_TAG in dict(model.tags)]


def _search(store: Store, query: str, purpose: str) -> list[Version]:
    with store.errors(purpose):
        found: list[Version] = []
        token = None
        while True:
            page = store.client.search_model_versions(query, max_results=1000, page_token=token)
            found += [_version(item) for item in page]
            token = page.token
            if not token:
                return found


def aliases(store: Store, name: str) -> dict[str, int]:
    """alias → version. Raises NotFound, naming the models there are, when there is no such model."""
    found = _registered(store, name)
    if found is None:
        with store.errors("list the models"):
            known = [model.name for model in store.client.search_registered_models(max_results=100)]
        raise NotFound(
            f"no model {name!r} in {store.shown_uri}; it holds: {', '.join(known) or 'none'}{nearest(name, known)}. "
            "Register one with: python -m fer_lab.sweep"
        )
    return {alias: int(version) for alias, version in dict(found.aliases).items()}


def set_alias(store: Store, name: str, alias: str, version: int) -> None:
    """Point an alias at a version."""
    _write_again_if_refused(
        store, f"set {name}@{alias}", lambda: store.client.set_registered_model_alias(name, alias, str(version))
    )


def version_tags(store: Store, name: str, version: int) -> dict[str, str]:
    """The tags of a version. Raises NotFound when it does not exist."""
    return dict(get_version(store, name, version).tags)


def set_version_tags(store: Store, name: str, version: int, tags: Mapping[str, object]) -> None:
    """Set tags of a version."""

    def write() -> None:
        for key, value in tags.items():
            store.client.set_model_version_tag(name, str(version), key, str(value))

    _write_again_if_refused(store, f"tag {name} version {version}", write)


def _write_again_if_refused(store: Store, purpose: str, write: Callable[[], None]) -> None:
    """Write what others may be writing too: of two first writers MLflow refuses one, whose second attempt then overwrites."""
    try:
        with store.errors(purpose):
            write()
    except (NotFound, Unreachable):
        raise
    except InputError:
        with store.errors(purpose):
            write()


def get_version(store: Store, name: str, version: int) -> Version:
    """One version. Raises NotFound, saying which versions exist."""
    try:
        with store.errors(f"read {name} version {version}"):
            return _version(store.client.get_model_version(name, str(version)))
    except Unreachable:
        raise
    except InputError:
        aliases(store, name)  # says so when it is the name that does not exist
        known = ", ".join(str(v.version) for v in versions(store, name)) or "none"
        raise NotFound(f"{name} has no version {version}; it has: {known}") from None


def resolve(ref: str, store: Store | None = None, cache: Path | None = None) -> Resolved:
    """Turn a model's name into a verified bundle on this disk.

    `ref` is models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or a path; a path touches no store and imports no
    mlflow. When the registry does not answer, the bundle that the same reference named in it last time is used, and that is
    said. Raises NotFound saying which of name, alias, version, run is missing, IntegrityError when what was
    downloaded is not what was registered.
    """
    ref = str(ref)
    if not ref.startswith(("models:/", "runs:/")):
        bundle = open_trusted(ref)
        return Resolved(ref, bundle, run_id=bundle.card.run_id)
    cache = cache or (store.home if store else faces.home()) / ".cache" / "models"
    uri = store.uri if store else store_uri(faces.home())
    try:
        store = store or open_store()
        if ref.startswith("runs:/"):
            resolved = _resolve_run(store, ref, cache)
        else:
            name, version = _parse(ref, store)
            resolved = _resolve_version(store, name, version, cache)
    except Unreachable as error:
        return _resolve_offline(ref, uri, cache, error)
    _remember(cache, ref, uri, resolved)
    return resolved


def _parse(ref: str, store: Store) -> tuple[str, int]:
    match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", ref)
    if match is None:
        raise InputError(f"{ref!r} is not a model; give models:/NAME@ALIAS, models:/NAME/VERSION, runs:/RUN_ID or a path")
    name, alias, version = match.groups()
    if version is not None:
        return name, int(version)
    known = aliases(store, name)
    if alias not in known:
        have = ", ".join(f"@{a} → {v}" for a, v in sorted(known.items())) or "none"
        latest = [v.version for v in versions(store, name)]
        raise NotFound(f"{name} has no alias @{alias}; its aliases: {have}; its versions: {', '.join(map(str, latest)) or 'none'}")
    return name, known[alias]


def _resolve_version(store: Store, name: str, version: int, cache: Path) -> Resolved:
    found = get_version(store, name, version)
    if not found.digest:
        raise InputError(f"{found.uri} was not registered by fer_lab (it has no digest)")
    folder = cache / name / f"{version}-{found.digest[:16]}"
    signer = found.tags.get(SIGNER_TAG)
    bundle = _cached(folder, found.digest, signer)
    if bundle is None:
        with store.errors(f"find the files of {found.uri}"):
            source = store.client.get_model_version_download_uri(name, str(version))
        _fetch(store, f"{source.rstrip('/')}/{BUNDLE_PATH}", folder, found.uri)
        bundle = open_trusted(folder)
        if bundle.digest != found.digest:
            shutil.rmtree(folder)
            raise IntegrityError(
                f"{found.uri} holds another bundle (digest {bundle.digest[:12]}…) than was registered ({found.digest[:12]}…); "
                "register it again"
            )
        if bundle.signed_by != signer:
            shutil.rmtree(folder)
            said = f"signed by {signer}" if signer else "not signed"
            raise IntegrityError(f"{found.uri} was registered {said}, but its files are not; register it again")
    return Resolved(found.uri, bundle, name, version, found.run_id)


def _resolve_run(store: Store, ref: str, cache: Path) -> Resolved:
    run_id = ref.removeprefix("runs:/").removesuffix("/bundle").strip("/")
    if not re.fullmatch(r"[\w-]+", run_id):
        raise InputError(f"{ref!r} is not a run; give runs:/RUN_ID")
    runs = cache / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    os.chmod(cache, 0o700)
    with tempfile.TemporaryDirectory(dir=runs, prefix=".fetch-") as staging:
        try:
            manifest = store.download_run_folder(run_id, f"bundle/{MANIFEST}", Path(staging) / MANIFEST)
            digest = sha256_of(manifest)
            folder = runs / f"{run_id}-{digest[:16]}"
            bundle = _cached(folder, digest, None)
            if bundle is None:
                _rename(store.download_run_folder(run_id, "bundle", Path(staging) / "bundle"), folder)
        except NotFound as error:
            if "has no" not in str(error):
                raise
            raise NotFound(
                f"run {run_id} has no bundle: it did not end well, or it is a study (name one of its children)"
            ) from None
    return Resolved(f"runs:/{run_id}", bundle or open_trusted(folder), run_id=run_id)


def _resolve_offline(ref: str, uri: str, cache: Path, error: Unreachable) -> Resolved:
    known = _last_resolved(cache).get(_key(ref, uri))
    bundle = _cached(cache / known["folder"], known["digest"], known.get("signed_by")) if known else None
    if known is None or bundle is None:
        raise error
    which = f" (version {known['version']})" if known["version"] is not None else ""
    note(f"note: {error} — using the copy of {ref} fetched earlier{which}")
    return Resolved(known["shown"], bundle, known["name"], known["version"], known["run_id"])


def _cached(folder: Path, digest: str, signer: str | None) -> Bundle | None:
    """The cached bundle when it is whole, the right one and signed as it was; a copy that is not is removed.

    Raises as `open_trusted` does when only the demanded signature is another: that is no damage, and the copy stays.
    """
    if not folder.is_dir():
        return None
    try:
        bundle = open_bundle(folder)
    except (InputError, IntegrityError):
        bundle = None
    if bundle is not None and (bundle.digest, bundle.signed_by) == (digest, signer):
        check_signer(folder, signer, demanded())
        return bundle
    note(f"note: the copy in {folder} is damaged; fetching it again")
    shutil.rmtree(folder)
    return None


def _fetch(store: Store, uri: str, folder: Path, shown: str) -> None:
    """Download an artifact folder beside its place and rename it. Raises NotFound when the storage has lost it."""
    from mlflow.artifacts import download_artifacts

    folder.parent.mkdir(parents=True, exist_ok=True)
    os.chmod(folder.parent.parent, 0o700)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as staging:
        try:
            fetched = download_artifacts(artifact_uri=uri, dst_path=staging, tracking_uri=store.uri)
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
                raise
            with store.errors(f"download {shown}"):
                if is_outage(error) or is_locked_out(error):
                    raise
            raise NotFound(f"the files of {shown} are gone from {uri}; register it again") from None
        _rename(Path(fetched), folder)


def _rename(fetched: Path, folder: Path) -> None:
    try:
        fetched.replace(folder)
    except OSError:  # another process fetched the same files meanwhile
        if not folder.is_dir():
            raise


def _key(ref: str, uri: str) -> str:
    """A name is one store's: the same name may mean another model in the team's."""
    return f"{hashlib.sha256(uri.encode()).hexdigest()[:12]} {ref}"


def _remember(cache: Path, ref: str, uri: str, resolved: Resolved) -> None:
    entry = {
        "shown": resolved.ref_shown, "name": resolved.name, "version": resolved.version, "run_id": resolved.run_id,
        "digest": resolved.bundle.digest, "folder": resolved.bundle.folder.relative_to(cache).as_posix(),
        "signed_by": resolved.bundle.signed_by,
    }  # fmt: skip
    known = _last_resolved(cache)
    if known.get(_key(ref, uri)) == entry:
        return
    write_whole(cache / "resolved.json", json.dumps(known | {_key(ref, uri): entry}, indent=1))


def _last_resolved(cache: Path) -> dict[str, Any]:
    try:
        known = json.loads((cache / "resolved.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _same(store: Store, name: str, run_id: str | None, bundle: Bundle) -> Version | None:
    wanted = (run_id, bundle.digest, bundle.signed_by)
    same = [v for v in versions(store, name) if (v.run_id, v.digest, v.tags.get(SIGNER_TAG)) == wanted]
    return same[0] if same else None


def _create(store: Store, bundle: Bundle, name: str, run_id: str | None, tags: dict[str, str]) -> Version:
    from mlflow.entities import LoggedModelStatus

    client = store.client
    experiment = client.get_run(run_id).info.experiment_id if run_id else store.experiment_id("fer-bundles")
    model = client.create_logged_model(experiment, name=name, source_run_id=run_id, tags={"digest": bundle.digest})
    with tempfile.TemporaryDirectory() as staging:
        folder = Path(staging) / MODEL_FOLDER
        write_model_folder(bundle, folder, run_id=run_id, model_id=model.model_id)
        client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    # A local registry would look a `models:/m-…` source up in MLflow's global store; the location itself is unambiguous.
    created = client.create_model_version(
        name, model.artifact_location, run_id=run_id, tags=tags, model_id=None if store.local else model.model_id
    )
    first = _same(store, name, run_id, bundle)
    if first is None or first.version == int(created.version):
        return _version(created)
    client.delete_model_version(name, created.version)
    if client.get_model_version(name, str(first.version)).source != created.source:
        client.delete_logged_model(model.model_id)
    return first


def _tags(bundle: Bundle, run_id: str | None) -> dict[str, str]:
    card = bundle.card
    tags = {
        "digest": bundle.digest, "run_id": run_id or "", "protocol": card.protocol, "label_source": card.label_source,
        "dataset": card.dataset, "fingerprint": card.fingerprint, "backbone": card.backbone, "image_size": str(card.image_size),
        "seeds": str(card.config.get("seed", "unknown")), "parent_run_id": card.parent_run_id or "",
        "runtimes": ", ".join(bundle.runtimes), "commit": card.commit, "exported_from": card.exported_from or "",
        SIGNER_TAG: bundle.signed_by or "",
    }  # fmt: skip
    scores = {key.removeprefix("val/"): value for key, value in card.validation.items()}
    tags |= {f"val_{metric}": f"{scores[metric]:.4f}" for metric in SHOWN_METRICS if metric in scores}
    return {key: value for key, value in tags.items() if value}


def _version(item: Any) -> Version:
    tags = {key: value for key, value in dict(item.tags).items() if value is not None}
    return Version(item.name, int(item.version), tags.get("digest", ""), tags.get("run_id") or None, tags)


def _registered(store: Store, name: str) -> Any:
    """The registered model, or None."""
    try:
        with store.errors(f"read the model {name}"):
            return store.client.get_registered_model(name)
    except NotFound:
        return None


def _checked(name: str) -> str:
    """The name, when `models:/NAME@ALIAS` can name it. MLflow refuses most of the others too, but only once the model is made."""
    if not name.strip() or re.search(r"[/:.%\"'@]", name):
        raise InputError(f"{name!r} is no name of a model: it must not be empty, nor hold any of / : . % \" ' @")
    return name


def _quoted(name: str) -> str:
    if "'" in name:
        raise InputError(f"a model's name has no quotes: {name!r}")
    return name
