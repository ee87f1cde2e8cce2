"""The ledger of a model: who became champion when and on what evidence, who was refused, how often the test split was seen.

Entry n is the parameter `entry-n` of one run per model. MLflow refuses to write a parameter twice with another value,
on sqlite and through a server alike, so that of any number of writers exactly one gets number n. Each entry holds the
sha256 of the one before it: a changed or missing entry breaks the chain.

A promotion claims its entry first and moves the alias second; a parameter `done-n` says that the move is complete.
Whoever comes after a killed promoter finds the claim without `done` and finishes it: there is always a champion, the
old one or the new one, and the ledger always knows which is right.

An entry of schema 1 does not state its schema; one of a later schema does, and is refused by who does not know it.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fer_lab.core.console import note
from fer_lab.core.errors import Conflict, InputError, IntegrityError, NotFound, refuse_newer
from fer_lab.tracking import registry
from fer_lab.tracking.run import PARAM_LENGTH
from fer_lab.tracking.store import Store, user

SCHEMA = 1
CHAMPION = "champion"
PREVIOUS = "previous"
RUNTIME_TAG = "champion_runtime"
ENTRY_TAG = "ledger_entry"  # on a version: number and hash of the entry that made it champion
ATTEMPTS = 200  # of claiming a number, when only looks and refusals of others come in between

Kind = Literal["promote", "rollback", "refuse", "look"]
MOVES = ("promote", "rollback")


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    n: int
    kind: Kind
    time: str  # UTC, ISO 8601
    user: str
    before: str  # sha256 of the entry before this one
    nonce: str  # makes two promoters' entries differ even when all else is equal
    version: int | None = None  # promoted, refused or rolled back to
    previous: int | None = None  # the champion that was replaced
    runtime: str | None = None
    policy_hash: str | None = None
    comparison_id: str | None = None
    verdicts_sha256: str | None = None  # of the artifact verdicts/<sha256>.json
    reason: str | None = None
    family: str | None = None  # of a look
    fingerprint: str | None = None  # of the faces that were looked at

    @property
    def text(self) -> str:
        """The entry as it is stored."""
        return json.dumps({k: v for k, v in asdict(self).items() if v is not None}, sort_keys=True, separators=(",", ":"))

    @property
    def sha256(self) -> str:
        """The hash that the next entry holds."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class Ledger:
    """The ledger of one model name. Opening it creates the registered model when absent."""

    def __init__(self, store: Store, name: str) -> None:
        self.store = store
        self.name = name
        self.run_id = registry.ensure_model(store, name)

    def entries(self) -> list[Entry]:
        """All entries in order. Raises IntegrityError when one is missing, altered or unreadable."""
        return self._read()[0]

    def verify(self) -> list[Entry]:
        """`entries`, and also that each champion's version points back at its entry: notices a cut-off end."""
        entries = self.entries()
        hashes = {f"{entry.n}:{entry.sha256}" for entry in entries}
        for version in registry.versions(self.store, self.name):
            claimed = version.tags.get(ENTRY_TAG)
            if claimed and claimed not in hashes:
                raise IntegrityError(
                    f"the ledger of {self.name} has lost entry {claimed.partition(':')[0]}, "
                    f"which made version {version.version} champion"
                )
        return entries

    def verdicts(self, entry: Entry) -> list[dict[str, Any]]:
        """What the gates said for an entry. Raises IntegrityError when it is not what was recorded."""
        if entry.verdicts_sha256 is None:
            return []
        name = f"verdicts/{entry.verdicts_sha256}.json"
        with tempfile.TemporaryDirectory() as staging, self.store.errors(f"read {name} of the ledger of {self.name}"):
            text = Path(self.store.client.download_artifacts(self.run_id, name, staging)).read_bytes()
        if hashlib.sha256(text).hexdigest() != entry.verdicts_sha256:
            raise IntegrityError(f"the verdicts of entry {entry.n} in the ledger of {self.name} were altered")
        verdicts: list[dict[str, Any]] = json.loads(text)
        return verdicts

    def champion(self) -> int | None:
        """The version that @champion names now, or None."""
        return registry.aliases(self.store, self.name).get(CHAMPION)

    def drift(self) -> tuple[int | None, int | None] | None:
        """(what the ledger says, what the alias says) when somebody moved @champion past fer_lab, else None."""
        entries, done = self._read()
        move = _last_move(entries)
        says = move.version if move else None
        actual = self.champion()
        return None if says == actual or (move and move.n not in done) else (says, actual)

    def promote(
        self,
        version: int,
        *,
        expected: int | None,
        runtime: str,
        verdicts: Sequence[Mapping[str, Any]] = (),
        policy_hash: str | None = None,
        comparison_id: str | None = None,
        user: str | None = None,
    ) -> Entry:
        """Make `version` champion in `runtime`, provided that the champion still is `expected` (None: there is none).

        Raises Conflict, with nothing changed, when the champion is another one or somebody claimed the move first.
        """
        registry.get_version(self.store, self.name, version)
        facts = {
            "kind": "promote", "version": version, "previous": expected, "runtime": runtime, "policy_hash": policy_hash,
            "comparison_id": comparison_id, "verdicts_sha256": self._keep(verdicts), "user": user,
        }  # fmt: skip
        return self._move(facts, expected)

    def rollback(self, to: int | None = None, *, reason: str | None = None, user: str | None = None) -> Entry:
        """Make an earlier champion champion again: the one before this one, or version `to` as it last was in another runtime.

        Raises InputError when there is none or `to` never was champion, Conflict when somebody else moved it meanwhile,
        NotFound or IntegrityError when it cannot be fetched whole.
        """
        self.recover()
        current = self.champion()
        target = self._earlier(to)
        self._check_whole(target)
        facts = {
            "kind": "rollback", "version": target.version, "previous": current, "runtime": target.runtime, "reason": reason,
            "policy_hash": target.policy_hash, "comparison_id": target.comparison_id, "user": user,
        }  # fmt: skip
        return self._move(facts, current)

    def refuse(
        self,
        version: int,
        *,
        expected: int | None,
        runtime: str,
        verdicts: Sequence[Mapping[str, Any]] = (),
        policy_hash: str | None = None,
        comparison_id: str | None = None,
        user: str | None = None,
        reason: str | None = None,
    ) -> Entry:
        """Record that the gates refused `version`. Moves nothing."""
        facts = {
            "kind": "refuse", "version": version, "previous": expected, "runtime": runtime, "policy_hash": policy_hash,
            "comparison_id": comparison_id, "verdicts_sha256": self._keep(verdicts), "user": user, "reason": reason,
        }  # fmt: skip
        return self._append(facts)

    def count_look(self, family: str, fingerprint: str, comparison_id: str) -> int:
        """Record that a comparison opened the test split; once per comparison. Returns the looks so far, this one included."""
        if not any(e.comparison_id == comparison_id and e.family == family for e in self._looks(family, fingerprint)):
            self._append({"kind": "look", "family": family, "fingerprint": fingerprint, "comparison_id": comparison_id})
        return self.looks(family, fingerprint)

    def looks(self, family: str | None = None, fingerprint: str | None = None) -> int:
        """How many comparisons have opened the test split, of one family or dataset when given."""
        return len({(entry.family, entry.comparison_id) for entry in self._looks(family, fingerprint)})

    def recover(self) -> Entry | None:
        """Finish a move that was claimed and then killed. Returns its entry, or None when all is finished."""
        with self.store.lock(f"promote-{self.name}"):
            return self._recover()

    def _earlier(self, to: int | None) -> Entry:
        """The move that a rollback repeats. A champion is a version in a runtime: in another one it is an earlier champion."""
        moves = [entry for entry in self.entries() if entry.kind in MOVES]
        if to is None:
            earlier = champions(moves)[-2:-1]
            if not earlier:
                raise InputError(f"{self.name} has no earlier champion to go back to")
        else:
            earlier = [entry for entry in moves if entry.version == to]
            if not earlier:
                known = ", ".join(str(v) for v in dict.fromkeys(entry.version for entry in moves)) or "none"
                raise InputError(f"version {to} of {self.name} never was champion (champions so far: {known}); use promote")
        held = in_office(self.store, self.name)
        others = [entry for entry in earlier if _shipped(entry) != held]
        if not others:
            raise InputError(f"version {earlier[-1].version} of {self.name} is the champion already")
        return others[-1]

    def _check_whole(self, entry: Entry) -> None:
        """Raise unless the version of a move can be fetched, verified and run in its runtime.

        Fetched anew: the cache of this machine may hold what the store has lost, and others have no such cache.
        """
        shown = f"models:/{self.name}/{entry.version}"
        try:
            with tempfile.TemporaryDirectory() as cache:
                holds = registry.resolve(shown, self.store, Path(cache)).bundle.runtimes
        except (NotFound, IntegrityError) as error:
            raise type(error)(
                f"{shown} cannot be loaded: {error}. Nothing was changed; --rollback --to N goes to another champion"
            ) from None
        if entry.runtime is not None and entry.runtime.partition(":")[0] not in holds:
            raise NotFound(
                f"{shown} holds no {entry.runtime}, in which it was champion; it has: {', '.join(holds)}. "
                "Nothing was changed; --rollback --to N goes to another champion"
            )

    def _looks(self, family: str | None, fingerprint: str | None) -> list[Entry]:
        return [
            entry
            for entry in self.entries()
            if entry.kind == "look" and family in (None, entry.family) and fingerprint in (None, entry.fingerprint)
        ]

    def _recover(self) -> Entry | None:
        entries, done = self._read()
        move = _last_move(entries)
        if move is None or move.n in done:
            return None
        note(f"note: finishing the {move.kind} of {self.name} to version {move.version} that {move.user} began at {move.time}")
        self._finish(move)
        return move

    def _move(self, facts: Mapping[str, Any], expected: int | None) -> Entry:
        with self.store.lock(f"promote-{self.name}"):
            self._recover()
            entries, done = self._read()
            last = _last_move(entries)
            if last is not None and last.n not in done:
                raise _taken(self.name, last)
            known = sum(entry.kind in MOVES for entry in entries)
            current = self.champion()  # read last: a move that comes in between shows here or in `_append`
            if current != expected:
                raise Conflict(
                    f"the champion of {self.name} is {_named(current)}, not {_named(expected)} as compared against; "
                    "nothing was changed. Compare again"
                )
            entry = self._append(facts, moves=known)
            self._finish(entry)
        return entry

    def _append(self, facts: Mapping[str, Any], moves: int | None = None) -> Entry:
        """Claim the next number. With `moves` given, Conflict as soon as the ledger holds more moves than that."""
        nonce = uuid.uuid4().hex
        for attempt in range(ATTEMPTS):
            entries = self.entries()
            if moves is not None and sum(entry.kind in MOVES for entry in entries) != moves:
                raise _taken(self.name, _last_move(entries))
            before = entries[-1].sha256 if entries else _root(self.name)
            stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            who = facts.get("user") or user()
            entry = Entry(**{**facts, "n": len(entries), "time": stamp, "user": who, "before": before, "nonce": nonce})
            if self._claim(f"entry-{entry.n:06d}", entry.text):
                return entry
            time.sleep(0.01 * (attempt % 10))
        raise Conflict(f"the ledger of {self.name} is too busy; nothing was changed. Try again")

    def _claim(self, key: str, text: str) -> bool:
        """Write a parameter that nobody has written; whether it is ours."""
        if len(text) > PARAM_LENGTH:
            raise InputError(f"a ledger entry of {len(text)} characters is too long (at most {PARAM_LENGTH}); shorten the reason")
        try:
            with self.store.errors(f"write the ledger of {self.name}"):
                self.store.client.log_param(self.run_id, key, text, synchronous=True)
        except InputError:
            # Refused, or the answer was lost on its way: what stands there decides.
            stands = self._params().get(key)
            if stands is None:
                raise
            return stands == text
        return True

    def _finish(self, entry: Entry) -> None:
        """Move the aliases as a claimed entry says; every step may be repeated."""
        assert entry.version is not None
        tags = {ENTRY_TAG: f"{entry.n}:{entry.sha256}"} | ({RUNTIME_TAG: entry.runtime} if entry.runtime else {})
        registry.set_version_tags(self.store, self.name, entry.version, tags)
        if entry.previous is not None and entry.previous != entry.version:
            registry.set_alias(self.store, self.name, PREVIOUS, entry.previous)
        registry.set_alias(self.store, self.name, CHAMPION, entry.version)
        self._claim(f"done-{entry.n:06d}", entry.sha256)
        # Through a server a promoter may be held up between its claim and its move, long enough for another to finish
        # that move and make the next. Whoever is late puts right what it has just overwritten.
        last = _last_move(self.entries())
        if last is not None and last.n > entry.n:
            self._finish(last)

    def _keep(self, verdicts: Sequence[Mapping[str, Any]]) -> str | None:
        """Upload verdicts under their hash, before the entry that names them."""
        if not verdicts:
            return None
        text = json.dumps([dict(verdict) for verdict in verdicts], indent=1, sort_keys=True, ensure_ascii=False) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()
        with tempfile.TemporaryDirectory() as staging, self.store.errors(f"write the ledger of {self.name}"):
            path = Path(staging) / f"{digest}.json"
            path.write_text(text, encoding="utf-8", newline="\n")
            self.store.client.log_artifact(self.run_id, str(path), "verdicts")
        return digest

    def _params(self) -> dict[str, str]:
        try:
            with self.store.errors(f"read the ledger of {self.name}"):
                return dict(self.store.client.get_run(self.run_id).data.params)
        except NotFound:
            raise IntegrityError(
                f"the ledger of {self.name} is gone: run {self.run_id} was purged from {self.store.shown_uri}"
            ) from None

    def _read(self) -> tuple[list[Entry], set[int]]:
        params = self._params()
        texts = {int(key[6:]): text for key, text in params.items() if key.startswith("entry-")}
        entries: list[Entry] = []
        before = _root(self.name)
        for n in range(len(texts)):
            if n not in texts:
                raise IntegrityError(f"the ledger of {self.name} is broken: entry {n} is missing")
            entry = _parsed(texts[n], self.name, n)
            if entry.n != n or entry.before != before:
                raise IntegrityError(f"the ledger of {self.name} is broken: entry {n} does not follow entry {n - 1}")
            before = entry.sha256
            entries.append(entry)
        done = {int(key[5:]) for key in params if key.startswith("done-")}
        for n in done:
            if n >= len(entries) or params[f"done-{n:06d}"] != entries[n].sha256:
                raise IntegrityError(f"the ledger of {self.name} is broken: entry {n} is not the one that was carried out")
        return entries, done


def in_office(store: Store, name: str) -> tuple[int, str | None] | None:
    """The version that @champion names and the runtime it ships in (None: nobody noted it); None without a champion.

    Raises NotFound when there is no such model.
    """
    version = registry.aliases(store, name).get(CHAMPION)
    return None if version is None else (version, registry.version_tags(store, name, version).get(RUNTIME_TAG))


def champions(entries: Sequence[Entry]) -> list[Entry]:
    """The moves to the champions that stand behind each other: the last is in office, a rollback leads to the one before it.

    A champion is a version in a runtime: shipping the same version in another one is a move too.

    >>> move = lambda kind, version: Entry(0, kind, "", "", "", "", version)
    >>> [e.version for e in champions([move("promote", 1), move("promote", 2), move("promote", 3), move("rollback", 2)])]
    [1, 2]
    """
    standing: list[Entry] = []
    for entry in entries:
        if entry.kind not in MOVES:
            continue
        before = [_shipped(earlier) for earlier in standing]
        if entry.kind == "rollback" and _shipped(entry) in before:
            while _shipped(standing[-1]) != _shipped(entry):
                standing.pop()
        elif not before or before[-1] != _shipped(entry):
            standing.append(entry)
    return standing


def _shipped(entry: Entry) -> tuple[int | None, str | None]:
    return entry.version, entry.runtime


def _last_move(entries: Sequence[Entry]) -> Entry | None:
    return next((entry for entry in reversed(entries) if entry.kind in MOVES), None)


def _taken(name: str, move: Entry | None) -> Conflict:
    who, version = (move.user, move.version) if move else ("somebody", "?")
    return Conflict(f"{who} moved the champion of {name} to version {version} first; nothing was changed. Compare again")


def _root(name: str) -> str:
    return hashlib.sha256(f"fer_lab ledger of {name}\n".encode()).hexdigest()


def _parsed(text: str, name: str, n: int) -> Entry:
    try:
        record = json.loads(text)
        refuse_newer(f"entry {n} in the ledger of {name}", record.get("schema", SCHEMA), SCHEMA)
        entry = Entry(**record)
    except (ValueError, TypeError, AttributeError):
        raise IntegrityError(f"the ledger of {name} is broken: entry {n} cannot be read") from None
    if entry.text != text:
        raise IntegrityError(f"the ledger of {name} is broken: entry {n} was altered")
    return entry


def _named(version: int | None) -> str:
    return "none" if version is None else f"version {version}"
