"""Runs the gates of a policy over a comparison and moves @champion, or refuses and says why.

    python -m fer_lab.promote                                   # the challenger of the default model
    python -m fer_lab.promote models:/fer-ferplus-8/7 --runtime openvino-int8 --policy experiments/policies/ferplus.yaml
    python -m fer_lab.promote runs:/RUN_ID --dry-run            # what would happen; nothing is written
    python -m fer_lab.promote --history                         # the ledger, its hash chain verified
    python -m fer_lab.promote --rollback [--to 5]               # back to the previous champion, or to a named one

The evidence is a comparison on the test split (`--comparison ID|PATH`); without one, the newest that measured exactly this
artifact is taken, and when there is none, the model is exported and compared first. It must be against the champion in the
runtime that the champion ships. With a champion the section `gates` of the policy decides, without one `first_promotion`.

Prints one line per gate (observed, required), then what was done. Passed: @champion moves, the old one becomes @previous,
and the runtime that was judged is what ships. Refused: exit 3, recorded as well. A champion that is no longer the one
compared against: exit 5, nothing moves. The last line of stdout is
`{"promoted", "name", "version", "runtime", "previous", "gates": [{"gate", "passed", "observed", "required"}], …}`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lab.core import console
from fer_lab.core.errors import Conflict, InputError, IntegrityError, NotFound, Refused

if TYPE_CHECKING:
    from fer_lab.backends.bundle import Bundle
    from fer_lab.data.faces import FaceDataset
    from fer_lab.gates.evidence import Champion
    from fer_lab.measure.comparison import Comparison
    from fer_lab.tracking.ledger import Entry, Ledger
    from fer_lab.tracking.registry import Resolved
    from fer_lab.tracking.store import Store

DEFAULT_POLICY = Path("experiments") / "policies" / "default.yaml"
MODELS = ("fer-ferplus-8", "fer-ferplus-5", "fer-synthetic-8")
"""The default models, the first that the registry holds with the alias in question."""


def parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    text = argparse.ArgumentParser(
        prog="python -m fer_lab.promote", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = text.add_argument
    add("model", nargs="?", help="models:/NAME@ALIAS, models:/NAME/VERSION, runs:/ID or a bundle folder (default: the challenger)")
    add("--runtime", help="what is shipped (default: the policy's)")
    add("--comparison", metavar="ID|PATH", help="the evidence (default: the newest on exactly this artifact)")
    add("--policy", type=Path, metavar="FILE", help=f"default: {DEFAULT_POLICY.as_posix()}")
    add("--expect", metavar="VERSION|none", help="move only if this still is the champion (default: the one compared against)")
    add("--dry-run", action="store_true", help="say what the gates say; write nothing")
    action = text.add_mutually_exclusive_group()
    action.add_argument("--history", action="store_true", help="print the ledger and verify its chain")
    action.add_argument("--rollback", action="store_true", help="make the previous champion champion again")
    add("--to", type=int, metavar="N", help="with --rollback: this version, which must have been champion")
    return text


def body(args: argparse.Namespace) -> dict[str, Any]:
    """Promote, roll back or print the ledger."""
    if args.to is not None and not args.rollback:
        raise InputError("--to N goes with --rollback")
    if args.history or args.rollback:
        given = [
            f"--{key.replace('_', '-')}" for key in ("runtime", "comparison", "policy", "expect") if getattr(args, key) is not None
        ]
        if given:
            raise InputError(f"{', '.join(given)} cannot be combined with --{'history' if args.history else 'rollback'}")
    from fer_lab.tracking.store import open_store

    if args.history:
        return _history(open_store(), args.model)
    if args.rollback:
        if args.dry_run:
            raise InputError("--rollback has no --dry-run; --history shows the champions to go back to")
        return _rollback(open_store(), args.model, args.to)
    return _promote(args)


def _promote(args: argparse.Namespace) -> dict[str, Any]:
    from fer_lab.backends.session import split_runtime
    from fer_lab.gates import evidence, policy
    from fer_lab.tracking import comparisons, registry
    from fer_lab.tracking.store import open_store

    rules = policy.load(_policy_file(args.policy))
    runtime = args.runtime or rules.runtime
    split_runtime(runtime)
    expect = _expectation(args.expect)
    store = open_store()
    resolved = registry.resolve(args.model or _default_model(store, "challenger"), store)
    name = resolved.name or registry.model_name(resolved.bundle.card)
    if expect is not None:  # before a version is made, a runtime exported, the test split opened
        _check_expected(name, _champion(store, name), expect)
    version = _registered(store, resolved, write=not args.dry_run)
    comparison = comparisons.named(store, args.comparison) if args.comparison else None
    if comparison is None:
        comparison = _newest(store, resolved.bundle, name, version, runtime)
    if comparison is None:
        if version is not None and resolved.version is None:
            resolved = registry.resolve(f"models:/{name}/{version}", store)
        resolved, version, comparison = _measure(store, resolved, name, runtime, write=not args.dry_run)
    row = evidence.row_of(comparison, resolved.bundle, runtime)
    if row is None:
        raise InputError(_not_measured(comparison, resolved, runtime))

    shown = f"models:/{name}/{version}" if version is not None else resolved.ref_shown
    standing = _champion(store, name)
    champion = standing.version if standing else None
    _check_expected(name, standing, expect)
    if standing:
        _check_current(store, shown, version, runtime, standing, comparison)
    first = standing is None
    verdicts = policy.run(rules, comparison, row, first=first)
    failed = policy.failed(verdicts)
    result: dict[str, Any] = {
        "promoted": False, "name": name, "version": version, "runtime": runtime, "previous": champion,
        "gates": [asdict(verdict) for verdict in verdicts], "comparison": comparison.id, "policy": rules.hash,
        "first_promotion": first, "dry_run": args.dry_run,
    }  # fmt: skip
    judged_by = "no champion yet: first_promotion" if first else f"champion: version {champion}"
    console.table(
        f"{shown} in {runtime}, {rules.where} ({judged_by})",
        ("gate", "", "observed", "required"),
        [(v.gate, "passed" if v.passed else "FAILED", v.observed, v.required) for v in verdicts],
    )
    record = {
        "expected": champion, "runtime": runtime, "verdicts": result["gates"], "policy_hash": rules.hash,
        "comparison_id": comparison.id,
    }  # fmt: skip
    if failed:
        result["reasons"] = [policy.sentence(verdict) for verdict in failed]
        if not args.dry_run and version is not None:
            entry = _ledger(store, name).refuse(version, reason=f"refused by {', '.join(v.gate for v in failed)}", **record)
            result["entry"] = entry.n
        console.next_command(_compare_again(shown, standing) if standing else "python -m fer_lab.sweep")
        raise Refused(f"{shown} is not promoted: " + " · ".join(result["reasons"]), result=result)
    if args.dry_run or version is None:
        console.say(f"{shown} would become @champion of {name} in {runtime}; nothing was changed")
        again = [shown, "--runtime", runtime, "--comparison", args.comparison or comparison.id]
        for option, given in (("--policy", args.policy), ("--expect", args.expect)):
            again += [option, str(given)] if given is not None else []
        console.next_command(f"python -m fer_lab.promote {' '.join(map(console.quoted, again))}")
        return result | {"would_promote": True}
    entry = _ledger(store, name).promote(version, **record)
    console.say(f"{shown} is @champion in {runtime} (ledger entry {entry.n}); previous: {_said(champion)}")
    console.next_command(f"python -m fer_lab.demo models:/{name}@champion")
    return result | {"promoted": True, "entry": entry.n}


def _policy_file(given: Path | None) -> Path:
    """The policy that was named, or the default beside the current directory or in the checkout."""
    if given is not None:
        return given
    here = Path(__file__).resolve().parents[1] / DEFAULT_POLICY
    found = next((path for path in (DEFAULT_POLICY, here) if path.is_file()), None)
    if found is None:
        raise NotFound(f"no {DEFAULT_POLICY.as_posix()} here or beside the package; name one with --policy FILE")
    return found


def _expectation(text: str | None) -> int | str | None:
    """`--expect`: a version, `none`, or None when it was not given."""
    if text is None or text == "none":
        return text
    if not text.isdecimal():
        raise InputError(f"--expect takes a version number or none, got {text!r}")
    return int(text)


def _default_model(store: Store, alias: str) -> str:
    """models:/NAME@alias of the first default model that has the alias."""
    from fer_lab.tracking import registry

    for name in MODELS:
        try:
            if alias in registry.aliases(store, name):
                console.note(f"model: models:/{name}@{alias}")
                return f"models:/{name}@{alias}"
        except NotFound:
            continue
    raise NotFound(f"no model in {store.shown_uri} has an @{alias}. Make one with: python -m fer_lab.sweep")


def _registered(store: Store, resolved: Resolved, *, write: bool) -> int | None:
    """Version of what is to be promoted; a run or a bundle is registered first (never in a dry run)."""
    from fer_lab.tracking import registry

    if resolved.version is not None:
        return resolved.version
    run_id = registry.run_of(store, resolved)
    if not write:
        return None
    made = registry.register(store, resolved.bundle.folder, run_id=run_id)
    console.note(f"registered {resolved.ref_shown} as {made.uri}")
    return made.version


def _champion(store: Store, name: str) -> Champion | None:
    """What @champion names, or None when there is no champion or no such model yet."""
    from fer_lab.gates.evidence import Champion
    from fer_lab.tracking.ledger import in_office

    try:
        held = in_office(store, name)
    except NotFound:
        return None
    return Champion(name, *held) if held else None


def _ledger(store: Store, name: str) -> Ledger:
    from fer_lab.tracking.ledger import Ledger

    return Ledger(store, name)


def _check_expected(name: str, standing: Champion | None, expect: int | str | None) -> None:
    """Raise Conflict unless the champion is the one that the caller took it to be."""
    champion = standing.version if standing else None
    if expect is not None and champion != (None if expect == "none" else expect):
        wanted = "none" if expect == "none" else f"version {expect}"
        raise Conflict(f"the champion of {name} is {_said(champion)}, expected {wanted}; nothing was changed")


def _check_current(store: Store, shown: str, version: int | None, runtime: str, champion: Champion, comparison: Comparison) -> None:
    """Raise Conflict unless the evidence is against the champion as it is shipped, and for something else."""
    from fer_lab.tracking import registry

    if (version, runtime) == (champion.version, champion.runtime):
        raise Conflict(f"{shown} already is the champion in {runtime}; nothing was changed")
    reference = comparison.reference
    if not champion.is_reference(comparison):
        against = f"models:/{reference.name}/{reference.version}" if reference.name else reference.model
        shipped = f" in {champion.runtime}" if champion.runtime else ""
        raise Conflict(
            f"comparison {comparison.id} is against {against} in {reference.runtime}, but the champion of {champion.name} is "
            f"version {champion.version}{shipped}; nothing was changed. Compare again: {_compare_again(shown, champion)}"
        )
    if reference.bundle_digest != registry.get_version(store, champion.name, champion.version).digest:
        raise IntegrityError(
            f"comparison {comparison.id} names version {champion.version} of {champion.name}, but measured another bundle"
        )


def _compare_again(model: str, champion: Champion) -> str:
    """The command that compares a model with the champion as it is shipped."""
    command = f"python -m fer_lab.compare {console.quoted(model)} --against champion"
    return f"{command} --against-runtime {champion.runtime}" if champion.runtime else command


def _not_measured(comparison: Comparison, resolved: Resolved, runtime: str) -> str:
    digest = resolved.bundle.runtime_digest(runtime.partition(":")[0])
    there = ", ".join(f"{row.model} · {row.runtime} ({row.digest[:12]})" for row in comparison.rows)
    return (
        f"comparison {comparison.id} did not measure the {runtime} artifact of {resolved.ref_shown} (digest {digest[:12]}) under "
        f"its card and signature; it holds {there}. Run: python -m fer_lab.compare {console.quoted(resolved.ref_shown)} "
        f"--runtimes {runtime}"
    )


def _newest(store: Store, bundle: Bundle, name: str, version: int | None, runtime: str) -> Comparison | None:
    """The newest comparison that measured this artifact; the store's too, when none that lies here counts against the champion."""
    from fer_lab.gates import evidence
    from fer_lab.tracking import comparisons

    champion = _champion(store, name)
    found = evidence.newest(store.home, bundle, runtime, champion)
    if version is not None and (found is None or not evidence.counts(found, bundle, champion)):
        comparisons.fetch_all(store, f"models:/{name}/{version}")
        found = evidence.newest(store.home, bundle, runtime, champion)
    if found is not None:
        console.note(f"evidence: comparison {found.id} of {found.created}")
    return found


def _measure(store: Store, resolved: Resolved, name: str, runtime: str, *, write: bool) -> tuple[Resolved, int | None, Comparison]:
    """Make the evidence that is missing: export when the bundle lacks the runtime, then compare with the champion.

    Returns the model that was measured (after an export, another version) and the comparison.
    """
    from fer_lab.data import datasets
    from fer_lab.measure.conduct import Request, conduct
    from fer_lab.tracking import registry
    from fer_lab.tracking.entrants import candidate_of, count_look

    lacking = runtime.partition(":")[0] not in resolved.bundle.runtimes
    if not write:
        holds = (
            f"{resolved.ref_shown} holds no {runtime}"
            if lacking
            else f"the {runtime} artifact of {resolved.ref_shown} was not compared"
        )
        verb = "export" if lacking else "compare"
        raise NotFound(
            f"{holds}, and a dry run changes nothing. Run: python -m fer_lab.{verb} {console.quoted(resolved.ref_shown)} "
            f"--runtimes {runtime}"
        )
    card = resolved.bundle.card
    dataset = datasets.resolve(card.dataset, store.home)
    if dataset.fingerprint != card.fingerprint:  # said before the look that would be wasted on it
        raise InputError(
            f"{dataset.name} here (fingerprint {dataset.fingerprint[:12]}) is not the data that {resolved.ref_shown} comes from "
            f"({card.fingerprint[:12]}), and the gates take no comparison on other faces. Prepare that data, or name a comparison "
            "made where it is with --comparison"
        )
    version = resolved.version
    if lacking:
        resolved, version = _export(store, resolved, name, runtime, dataset)
    champion = _champion(store, name)
    who = _said(champion.version if champion else None)
    console.note(f"evidence: none for this artifact; comparing {resolved.ref_shown} with {who} as champion on {dataset.name}")
    candidates = [candidate_of(resolved)]
    if champion is not None and champion.version != version:
        candidates.insert(0, candidate_of(registry.resolve(f"models:/{name}/{champion.version}", store)))
    shipped = champion.runtime if champion else None
    wanted = tuple(dict.fromkeys(each for each in (shipped, runtime) if each))
    shared = all(each.partition(":")[0] in candidate.runtimes for each in wanted for candidate in candidates)
    request = Request(
        protocol=card.protocol, runtimes=wanted if shared else None,  # else one lacks one of them: each in all it holds
        batches=(1,), robustness=False, end_to_end=False, cold_start=False, reference_runtime=shipped,
    )  # fmt: skip
    comparison, folder = conduct(
        candidates, dataset, request, home=store.home, progress=console.note,
        count_look=lambda identity: count_look(store, candidates, dataset, identity),
    )  # fmt: skip
    console.note(f"evidence: {folder}; its report: python -m fer_lab.compare --replay {folder}")
    return resolved, version, comparison


def _export(store: Store, resolved: Resolved, name: str, runtime: str, dataset: FaceDataset) -> tuple[Resolved, int]:
    """Export one runtime and register the new version, which takes over @challenger when the old one held it."""
    from fer_lab.convert.export import export_bundle
    from fer_lab.tracking import registry

    console.note(f"export: {resolved.ref_shown} holds no {runtime}; exporting it")
    result = export_bundle(
        resolved.bundle, dataset, [runtime.partition(":")[0]], store.home / "exports" / name, exported_from=resolved.ref_shown,
        progress=console.note,
    )  # fmt: skip
    if result.refused:
        raise Refused(f"export refused {runtime}: " + "; ".join(result.refused.values()))
    run_id = registry.run_of(store, resolved)
    made = registry.register(store, result.folder, run_id=run_id, name=name, tags={"exported_from": str(resolved.version)})
    if registry.aliases(store, name).get("challenger") == resolved.version:
        registry.set_alias(store, name, "challenger", made.version)
    console.note(f"export: registered {made.uri}")
    return registry.resolve(made.uri, store), made.version


def _name_of(store: Store, model: str | None, alias: str) -> str:
    """The registered name in `NAME`, `models:/NAME…`, or the default model's."""
    text = model or _default_model(store, alias)
    match = re.fullmatch(r"(?:models:/)?([^/@\\]+)(?:[@/][^/@]+)?", text)
    if match is None or text.startswith("runs:/"):
        raise InputError(f"the ledger belongs to a registered model; give models:/NAME, got {text!r}")
    return match[1]


def _history(store: Store, model: str | None) -> dict[str, Any]:
    from fer_lab.tracking import registry

    name = _name_of(store, model, "champion")
    aliases = registry.aliases(store, name)  # says so when there is no such model; opening its ledger would create it
    ledger = _ledger(store, name)
    entries = ledger.verify()
    console.table(
        f"ledger of {name}",
        ("entry", "time", "what", "version", "previous", "runtime", "comparison", "by", "reason"),
        [_line(entry) for entry in entries],
    )
    drift = ledger.drift()
    if drift is not None:
        says, actual = drift
        console.note(f"warning: @champion is {_said(actual)}, the ledger says {_said(says)}: somebody moved it past fer_lab")
    console.say(f"{len(entries)} entries, the chain is whole; @champion is {_said(aliases.get('champion'))}")
    console.next_command(f"python -m fer_lab.promote models:/{name} --rollback")
    return {
        "name": name, "champion": aliases.get("champion"), "previous": aliases.get("previous"), "verified": True,
        "in_ledger": drift is None, "entries": [_entry(entry) for entry in entries],
    }  # fmt: skip


def _rollback(store: Store, model: str | None, to: int | None) -> dict[str, Any]:
    from fer_lab.tracking import registry

    name = _name_of(store, model, "champion")
    registry.aliases(store, name)
    entry = _ledger(store, name).rollback(to)
    console.say(f"models:/{name}/{entry.version} is @champion again in {entry.runtime}; before: {_said(entry.previous)}")
    console.next_command(f"python -m fer_lab.promote models:/{name} --history")
    return {
        "promoted": True, "rolled_back": True, "name": name, "version": entry.version, "runtime": entry.runtime,
        "previous": entry.previous, "gates": [], "entry": entry.n,
    }  # fmt: skip


def _line(entry: Entry) -> tuple[object, ...]:
    cells = (entry.version, entry.previous, entry.runtime, entry.comparison_id, entry.user, entry.reason or entry.family)
    return (entry.n, entry.time, entry.kind, *("" if cell is None else cell for cell in cells))


def _entry(entry: Entry) -> dict[str, Any]:
    return {key: value for key, value in asdict(entry).items() if value is not None} | {"sha256": entry.sha256}


def _said(version: int | None) -> str:
    return "none" if version is None else f"version {version}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb; returns its exit code."""
    return console.run(parser(), body, argv)


if __name__ == "__main__":
    sys.exit(main())
