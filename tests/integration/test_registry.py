"""The registry: one version per content, and only whole, registered bytes come back."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path

import pytest
from gate_records import SIGNER
from tracking_store import LABELS, closed_door, fresh_store, signing_key, tiny_bundle, together

from fer_lab import register as verb
from fer_lab.backends.bundle import write_manifest
from fer_lab.core.errors import FerLabError, InputError, IntegrityError, NotFound, Unreachable
from fer_lab.tracking import registry
from fer_lab.tracking.registry import aliases, model_name, register, resolve, set_alias, versions
from fer_lab.tracking.store import Store, open_store

posix = pytest.mark.skipif(os.name != "posix", reason="forks processes")
NAME = "fer-synthetic-8"


@pytest.fixture
def store(home: Path):  # type: ignore[no-untyped-def]
    return fresh_store(home)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny")


def files_of(store, version: int) -> Path:  # type: ignore[no-untyped-def]
    """Where a local store keeps the bundle of a version."""
    source = store.client.get_model_version_download_uri(NAME, str(version))
    return Path(source.removeprefix("file://")) / "artifacts" / "bundle"


@pytest.mark.parametrize(
    ("source", "labels", "name"),
    [
        ("ferplus-2016", LABELS, "fer-ferplus-8"),
        ("ferplus-2017", LABELS[:5], "fer-ferplus-5"),
        ("synthetic", LABELS, "fer-synthetic-8"),
    ],
)
def test_a_model_is_named_after_what_it_was_trained_on(source: str, labels: tuple[str, ...], name: str, tmp_path: Path) -> None:
    from fer_lab.backends.bundle import open_bundle

    assert model_name(open_bundle(tiny_bundle(tmp_path / "b", label_source=source, labels=labels)).card) == name


def test_registering_twice_gives_one_version(store, bundle: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run = store.start_run("s", "r")
    first = register(store, bundle, run_id=run.id, tags={"seeds": "0,1,2"})
    assert register(store, bundle, run_id=run.id) == first
    assert (first.name, first.version, first.uri) == (NAME, 1, "models:/fer-synthetic-8/1")
    expected = {
        "run_id": run.id, "protocol": "ferplus8", "label_source": "synthetic", "seeds": "0,1,2", "val_accuracy": "0.8123",
        "parent_run_id": "p" * 32, "runtimes": "torch", "digest": first.digest,
    }  # fmt: skip
    assert {key: first.tags[key] for key in expected} == expected
    assert register(store, tiny_bundle(tmp_path / "other", "b"), run_id=run.id).version == 2
    assert register(store, bundle, run_id=None).version == 3
    assert [v.version for v in versions(store, NAME)] == [1, 2, 3]


@posix
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("locked", [True, False], ids=["one machine", "many machines"])
def test_eight_processes_register_one_version(locked: bool, home: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no file lock reaches: whoever comes second removes its own version."""
    fresh_store(home)
    if not locked:
        monkeypatch.setattr("fer_lab.tracking.store.Store.lock", lambda self, name: contextlib.nullcontext())
    found = together(8, lambda i: register(open_store(home), bundle, run_id=None).version)
    assert found == [1] * 8
    store = open_store(home)
    assert [v.version for v in versions(store, NAME)] == [1]
    assert resolve(f"models:/{NAME}/1", store).bundle.card.name == "tiny"
    assert [run["status"] for run in store.find_runs("fer-ledger", {"ledger_of": NAME})] == ["FINISHED"]


def test_a_name_resolves_to_the_registered_bytes(store, bundle: Path, home: Path) -> None:  # type: ignore[no-untyped-def]
    run = store.start_run("s", "r")
    store.log_bundle(run, bundle)
    version = register(store, bundle, run_id=run.id)
    set_alias(store, NAME, "challenger", 1)
    by_alias = resolve(f"models:/{NAME}@challenger", store)
    assert (by_alias.ref_shown, by_alias.name, by_alias.version, by_alias.run_id) == (f"models:/{NAME}/1", NAME, 1, run.id)
    assert by_alias.bundle.digest == version.digest == resolve(f"models:/{NAME}/1", store).bundle.digest
    for _ in range(2):
        assert resolve(f"runs:/{run.id}", store).bundle.digest == version.digest
    assert resolve(str(bundle)).bundle.digest == version.digest
    assert home / ".cache" in by_alias.bundle.folder.parents
    assert stat.S_IMODE((home / ".cache" / "models").stat().st_mode) == 0o700 or os.name != "posix"


def test_what_is_missing_is_named(store, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    register(store, bundle, run_id=None)
    set_alias(store, NAME, "challenger", 1)
    for ref, message in {
        f"models:/{NAME}@champion": "has no alias @champion; its aliases: @challenger → 1; its versions: 1",
        "models:/fer-synthetic-9@champion": f"no model 'fer-synthetic-9' .* it holds: {NAME}; did you mean '{NAME}'",
        f"models:/{NAME}/7": "has no version 7; it has: 1",
        "runs:/" + "0" * 32: "no run '000",
        "runs:/": "is not a run",
        "models:/x": "is not a model",
        "models:/../x/1": "is not a model",
        "no/such/folder": "no such bundle folder",
    }.items():
        with pytest.raises(InputError, match=message):
            resolve(ref, store)
    run = store.start_run("s", "study")
    with pytest.raises(NotFound, match="has no bundle"):
        resolve(f"runs:/{run.id}", store)


@pytest.mark.parametrize("damage", ["altered", "missing", "extra", "swapped", "gone"])
def test_a_version_whose_files_changed_is_refused(damage: str, store, bundle: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    register(store, bundle, run_id=None)
    files = files_of(store, 1)
    match damage:
        case "altered":
            (files / "weights.safetensors").write_bytes(b"b" * 100)
        case "missing":
            (files / "weights.safetensors").unlink()
        case "extra":
            (files / "run_me.py").touch()
        case "swapped":  # another bundle, whole in itself
            shutil.rmtree(files)
            tiny_bundle(files, "evil")
        case "gone":
            shutil.rmtree(files.parents[1])
    with pytest.raises(NotFound if damage == "gone" else IntegrityError) as caught:
        resolve(f"models:/{NAME}/1", store)
    assert caught.value.exit_code == (2 if damage == "gone" else 4)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [(401, InputError, "cannot download .*: 401"), (403, InputError, "cannot download .*: 403"), (404, NotFound, "are gone from")],
)
def test_a_storage_that_lets_nobody_in_has_lost_nothing(  # type: ignore[no-untyped-def]
    status: int, kind: type[FerLabError], said: str, store, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose password is missing is told so, not to register again."""
    register(store, bundle, run_id=None)
    with closed_door(status) as address:
        files = f"{address}/api/2.0/mlflow-artifacts/artifacts/1"
        monkeypatch.setattr(store.client, "get_model_version_download_uri", lambda *_: files)
        with pytest.raises(kind, match=said) as caught:
            resolve(f"models:/{NAME}/1", store)
    assert type(caught.value) is kind


def test_a_damaged_copy_in_the_cache_is_fetched_again(store, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    register(store, bundle, run_id=None)
    folder = resolve(f"models:/{NAME}/1", store).bundle.folder
    (folder / "weights.safetensors").write_bytes(b"x")
    assert resolve(f"models:/{NAME}/1", store).bundle.folder == folder
    assert "is damaged; fetching it again" in capsys.readouterr().err


def test_a_changed_digest_tag_is_noticed(store, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    register(store, bundle, run_id=None)
    registry.set_version_tags(store, NAME, 1, {"digest": "0" * 64})
    with pytest.raises(IntegrityError, match="holds another bundle"):
        resolve(f"models:/{NAME}/1", store)


def test_the_last_bundle_serves_when_the_registry_is_away(
    store, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:  # type: ignore[no-untyped-def]
    register(store, bundle, run_id=None)
    set_alias(store, NAME, "champion", 1)
    resolve(f"models:/{NAME}@champion", store)
    resolve(f"models:/{NAME}/1", store)  # the last of each name, not of all

    def away() -> Store:
        raise Unreachable("it does not answer")

    monkeypatch.setattr(registry, "open_store", away)
    offline = resolve(f"models:/{NAME}@champion")
    assert (offline.version, offline.bundle.card.name) == (1, "tiny")
    assert "using the copy of models:/fer-synthetic-8@champion fetched earlier (version 1)" in capsys.readouterr().err
    with pytest.raises(Unreachable):
        resolve(f"models:/{NAME}@challenger")
    for demanded, error in (("oops", InputError), (SIGNER, IntegrityError)):  # neither is damage of the copy
        monkeypatch.setenv("FER_LAB_SIGNED_BY", demanded)
        with pytest.raises(error, match=r"oops|is not signed"):
            resolve(f"models:/{NAME}@champion")
    monkeypatch.delenv("FER_LAB_SIGNED_BY")
    assert resolve(f"models:/{NAME}@champion").version == 1
    (offline.bundle.folder / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(Unreachable):
        resolve(f"models:/{NAME}@champion")


def test_another_stores_model_of_that_name_is_not_taken_for_this_ones(
    store, bundle: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # type: ignore[no-untyped-def]
    """Local champion yesterday, the team's server today, and it is down; a run that was fetched from there serves, too."""
    register(store, bundle, run_id=None)
    set_alias(store, NAME, "champion", 1)
    resolve(f"models:/{NAME}@champion", store)
    run = store.start_run("s", "r")
    store.log_bundle(run, bundle)
    assert resolve(f"runs:/{run.id}", store).run_id == run.id
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        for ref in (f"models:/{NAME}@champion", f"runs:/{run.id}"):
            with pytest.raises(Unreachable):
                resolve(ref)

    def away() -> Store:
        raise Unreachable("it does not answer")

    monkeypatch.setattr(registry, "open_store", away)
    assert resolve(f"runs:/{run.id}").ref_shown == f"runs:/{run.id}"


def test_a_damaged_bundle_is_not_registered(store, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    (bundle / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(IntegrityError):
        register(store, bundle, run_id=None)
    assert versions(store, NAME) == []


def test_an_upload_that_fails_leaves_no_version(store, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.client, "log_model_artifacts", full)
    with pytest.raises(OSError, match="No space left"):
        register(store, bundle, run_id=None)
    assert versions(store, NAME) == []
    monkeypatch.undo()
    assert register(store, bundle, run_id=None).version == 1


def test_a_model_of_somebody_else_is_left_alone(store, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    store.client.create_registered_model("theirs")
    with pytest.raises(InputError, match="was not created by fer_lab"):
        register(store, bundle, run_id=None, name="theirs")
    assert aliases(store, "theirs") == {}


@pytest.mark.parametrize("name", ["it's", "a@b", "a/b", "50 %", "v1.2", " "])
def test_what_models_cannot_name_is_no_name(name: str, store, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    """Nothing is left in the registry: no model without a version, none that no command could name."""
    with pytest.raises(InputError, match="is no name of a model"):
        register(store, bundle, run_id=None, name=name)
    assert list(store.client.search_registered_models()) == []


def last_line(capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    import json

    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_verb_registers_a_run_and_a_folder(store, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    run = store.start_run("s", "r")
    store.log_bundle(run, bundle)
    assert verb.main([f"runs:/{run.id}"]) == 3
    assert "is RUNNING; only a FINISHED run is registered" in capsys.readouterr().err
    run.end()
    assert verb.main([run.id, "--alias", "challenger"]) == 0
    said = capsys.readouterr()
    assert "next: python -m fer_lab.export models:/fer-synthetic-8/1" in said.out
    assert f"export MLFLOW_TRACKING_URI={store.uri}" in said.out
    assert aliases(store, NAME) == {"challenger": 1}
    assert verb.main([run.id]) == 0
    assert {k: v for k, v in last_line(capsys).items() if k in ("name", "version")} == {"name": NAME, "version": 1}
    assert verb.main([str(bundle), "--name", "mine"]) == 0
    assert last_line(capsys)["name"] == "mine"
    (bundle / "card.json").write_text("{}")
    assert verb.main([str(bundle)]) == 4
    assert verb.main(["nowhere"]) == 2
    assert verb.main(["models:/x/1"]) == 2


@pytest.mark.parametrize("alias", ["champion", "Champion", "previous"])
def test_no_champion_is_made_past_the_gates(  # type: ignore[no-untyped-def]
    alias: str, store, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is registered either."""
    assert verb.main([str(bundle), "--alias", alias]) == 2
    assert "python -m fer_lab.promote models:/NAME@challenger" in capsys.readouterr().err
    assert versions(store, NAME) == []


def test_a_version_is_signed_as_a_version_of_its_own(  # type: ignore[no-untyped-def]
    store, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signing never changes what is there; a lost or a foreign signature is noticed, and one can be demanded."""
    key = signing_key(tmp_path / "key.pem")
    register(store, bundle, run_id=None)
    for _ in range(2):  # the second time the signed version is there
        assert verb.main([f"models:/{NAME}/1", "--sign", str(key), "--alias", "challenger"]) == 0
        signed = last_line(capsys)
    assert (signed["version"], aliases(store, NAME)) == (2, {"challenger": 2})
    found = [resolve(f"models:/{NAME}/{n}", store).bundle for n in (1, 2)]
    assert [one.signed_by for one in found] == [None, signed["signed_by"]]
    assert found[0].digest == found[1].digest
    assert not (bundle / "SIGNATURE.json").exists()
    assert verb.main([f"models:/{NAME}/1", "--sign", str(key), "--name", "mine"]) == 0
    assert last_line(capsys)["name"] == "mine"

    (found[1].folder / "SIGNATURE.json").unlink()  # in the cache: fetched again
    assert resolve(f"models:/{NAME}/2", store).bundle.signed_by == signed["signed_by"]
    monkeypatch.setenv("FER_LAB_SIGNED_BY", signed["signed_by"])
    assert resolve(f"models:/{NAME}/2", store).version == 2
    for unsigned in (f"models:/{NAME}/1", str(bundle)):
        with pytest.raises(IntegrityError, match="is not signed; expected a signature by"):
            resolve(unsigned, store)
    monkeypatch.delenv("FER_LAB_SIGNED_BY")

    (files_of(store, 2) / "SIGNATURE.json").unlink()  # in the store
    with pytest.raises(IntegrityError, match=r"was registered signed by .* but its files are not"):
        resolve(f"models:/{NAME}/2", store, cache=tmp_path / "elsewhere")


def test_errors_carry_no_password(store, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    from mlflow.exceptions import MlflowException

    with pytest.raises(FerLabError) as caught, store.errors("look"):
        raise MlflowException("connection to postgresql://ann:s3cret@db/x failed")
    assert "s3cret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # importing mlflow.pyfunc warns about its own type hints
def test_anybody_can_load_a_version_with_mlflow(store, trained_bundle: Path, drawn, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """`mlflow.pyfunc.load_model("models:/…@challenger").predict(faces)` gives what the Predictor gives."""
    import mlflow
    import numpy as np

    from fer_lab.backends.session import Predictor

    version = register(store, trained_bundle, run_id=None)
    set_alias(store, version.name, "challenger", version.version)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    mlflow.set_tracking_uri(store.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{version.name}@challenger", model_config={"runtime": "torch", "threads": 1})
        faces = drawn.pixels[:4]
        with Predictor.open(trained_bundle, "torch") as predictor:
            expected = predictor.predict(faces)
        np.testing.assert_array_equal(expected, model.predict(faces))
        np.testing.assert_array_equal(expected, model.predict(faces[:, None].astype(np.int64)))
        with pytest.raises(Exception, match="whole numbers in 0–255"):
            model.predict(faces.astype(np.float32) + 0.5)
    finally:
        mlflow.set_tracking_uri(None)
    record = (files_of_version(store, version) / "MLmodel").read_text()
    assert str(trained_bundle) not in record
    assert "requirements.txt" in {p.name for p in files_of_version(store, version).iterdir()}


def files_of_version(store, version) -> Path:  # type: ignore[no-untyped-def]
    return Path(store.client.get_model_version_download_uri(version.name, str(version.version)).removeprefix("file://"))


def test_the_manifest_of_the_registered_bundle_is_untouched(store, bundle: Path) -> None:  # type: ignore[no-untyped-def]
    version = register(store, bundle, run_id=None)
    assert write_manifest(bundle) == version.digest
    assert (files_of(store, 1) / "MANIFEST.json").read_bytes() == (bundle / "MANIFEST.json").read_bytes()
