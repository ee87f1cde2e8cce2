"""Latency profiles in a file of their own: measured on the target machine, joined elsewhere by artifact digest.

python -m fer_lab.compare BUNDLE… --latency-only --out edge.json        (core install: no torch, registry or dataset)
python -m fer_lab.compare models:/fer-ferplus-8/4 --profiles edge.json  (accuracy here, latency from there)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fer_lab.core.errors import InputError, NotFound, refuse_newer
from fer_lab.core.files import write_whole
from fer_lab.core.types import Host, LatencyProfile, LatencySpec
from fer_lab.measure import latency, stats
from fer_lab.measure.candidates import Candidate
from fer_lab.measure.comparison import Profile
from fer_lab.measure.host import load_average, this_host

SCHEMA = 1


@dataclass(frozen=True)
class Entrant:
    """One model × runtime that is to be timed."""

    candidate: Candidate
    runtime: str


@dataclass(frozen=True)
class Group:
    """Candidates that were timed together: same threads, batch and extent, interleaved, with one A/A control."""

    threads: int
    batch: int
    end_to_end: bool
    floor: float
    control: stats.Interval
    control_rounds: tuple[tuple[float, ...], ...]
    steal: float | None
    load_average: float | None
    profiles: tuple[LatencyProfile, ...]


@dataclass(frozen=True)
class Profiles:
    """All latency measured on one host in one go."""

    host: Host
    created: str
    groups: tuple[Group, ...]
    schema: int = SCHEMA

    def flat(self) -> tuple[Profile, ...]:
        """One record per model × runtime × specification, with host and noise floor."""
        return tuple(Profile(self.host, p.spec.runtime, g.floor, p) for g in self.groups for p in g.profiles)

    def group(self, end_to_end: bool = False) -> Group | None:
        """The group whose figures stand for the host: batch 1 (else the first batch) at the first thread count."""
        fitting = [g for g in self.groups if g.end_to_end == end_to_end]
        return next((g for g in fitting if g.batch == 1), fitting[0] if fitting else None)

    @property
    def artifacts(self) -> frozenset[tuple[str, str]]:
        """Digest and runtime of what was timed in that group."""
        group = self.group()
        return frozenset((p.digest, p.spec.runtime) for p in group.profiles) if group else frozenset()

    def write(self, path: Path) -> Path:
        """Write as JSON, atomically; times in ms with four decimals."""
        tree = asdict(self)
        for group in tree["groups"]:
            group["control_rounds"] = _rounded(group["control_rounds"])
            for profile in group["profiles"]:
                profile["rounds"] = _rounded(profile["rounds"])
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_whole(path, json.dumps(tree, ensure_ascii=False, allow_nan=False, default=dict) + "\n")


def read(path: Path) -> Profiles:
    """Read profiles. Raises NotFound when absent, InputError naming the key that does not fit."""
    from pydantic import TypeAdapter, ValidationError

    if not path.is_file():
        raise NotFound(
            f"no profiles at {path}. Measure on the target: python -m fer_lab.compare BUNDLE… --latency-only --out {path}"
        )
    raw = path.read_bytes()
    try:
        refuse_newer(path, json.loads(raw)["schema"], SCHEMA)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{path}: not profiles of fer_lab") from None
    try:
        return TypeAdapter(Profiles).validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def check(extra: Mapping[str, Profiles], artifacts: AbstractSet[tuple[str, str]]) -> None:
    """Raise InputError for profiles, by file, that timed none of the artifacts (digest and runtime)."""
    for where, one in extra.items():
        if not one.artifacts & artifacts:
            there = ", ".join(dict.fromkeys(f"{p.latency.model} · {p.runtime} ({p.latency.digest[:12]})" for p in one.flat()))
            raise InputError(
                f"{where} measured other artifacts than are compared here: {there or 'none'}. Measure the compared bundles on the "
                f"target: python -m fer_lab.compare BUNDLE… --latency-only --out {where}"
            )


def kept(folder: Path) -> list[Profiles]:
    """The profiles of other hosts that a record keeps below `folder`; the first one that fits a row gives its figures."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def keep(given: Iterable[Profiles], folder: Path) -> None:
    """Write profiles of other hosts below `folder`, before those that are there: with the record, not only for one call."""
    given = list(given)
    if given:
        there = [one for one in kept(folder) if one not in given]
        for number, one in reversed(list(enumerate([*given, *there]))):  # the last first: stopped in between, none is lost
            one.write(folder / f"{number:03d}.json")


def take(
    entrants: Sequence[Entrant],
    *,
    threads: Sequence[int],
    batches: Sequence[int],
    created: str,
    protocol: str = "ferplus8",
    budget: latency.Budget | None = None,
    with_end_to_end: bool = True,
    cold: Callable[[Entrant, int], tuple[float, float, float | None]] | None = None,
    done: Profiles | None = None,
    save: Callable[[Profiles], object] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Profiles:
    """Time every entrant under every specification; the first entrant is the control's model.

    `cold` gives load time, first call (ms) and peak memory (MB) of a fresh process. `done` holds groups measured before an
    interruption; `save` is called after each group.
    """
    host = this_host()
    groups = list(done.groups) if done else []
    specs = [(t, b, False) for t in threads for b in batches] + ([(threads[0], 1, True)] if with_end_to_end else [])
    for count, batch, end_to_end in specs:
        if any((g.threads, g.batch, g.end_to_end) == (count, batch, end_to_end) for g in groups):
            continue
        if progress:
            what = "crop to label" if end_to_end else f"batch {batch}"
            progress(f"latency: {what}, {count} thread{'s' if count > 1 else ''}, {len(entrants)} entrants interleaved")
        timed = [
            latency.Timed(
                e.candidate.shown, _opener(e, count, protocol), LatencySpec(e.runtime, count, batch, end_to_end),
                e.candidate.digest(e.runtime), e.candidate.size_mb(e.runtime),
            )
            for e in entrants
        ]  # fmt: skip
        measured = latency.measure_with_control(timed, budget)
        own = list(measured.profiles)
        if cold is not None and batch == (1 if 1 in batches else batches[0]) and not end_to_end and count == threads[0]:
            for i, entrant in enumerate(entrants):  # in the group that stands for the host, see Profiles.group
                load_ms, first_ms, memory = cold(entrant, count)
                own[i] = replace(own[i], load_ms=load_ms, first_call_ms=first_ms, peak_memory_mb=memory)
        groups.append(
            Group(
                count, batch, end_to_end, measured.floor, measured.control, measured.control_rounds, measured.steal,
                load_average(), tuple(own),
            )
        )  # fmt: skip
        if save:
            save(Profiles(host, created, tuple(groups)))
    return Profiles(host, created, tuple(groups))


def _opener(entrant: Entrant, threads: int, protocol: str) -> Callable[[], latency.Runs]:
    return lambda: entrant.candidate.open(entrant.runtime, threads, protocol)


def _rounded(rounds: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[round(ms, 4) for ms in one] for one in rounds]
