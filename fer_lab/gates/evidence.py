"""Finds the record that a promotion stands on: the row that measured exactly the artifact which is to be shipped.

An accuracy belongs to an artifact, not to a name: the row must carry the digest of the runtime's files, and the card by which
the gates judge (what the outputs mean, licence, where it comes from) must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lab.core.errors import FerLabError, NotFound

if TYPE_CHECKING:
    from fer_lab.backends.bundle import Bundle
    from fer_lab.measure.comparison import Comparison, Row

COMPARISONS = "comparisons"
"""Where compare leaves its folders, below the store root."""


def folder_of(home: Path) -> Path:
    """Where the comparisons of a store root lie, one folder each."""
    return home / COMPARISONS


def row_of(comparison: Comparison, bundle: Bundle, runtime: str) -> Row | None:
    """Return the row that measured this bundle in this runtime, or None. Rows that aggregate seeds do not count.

    Nor do rows of the same files under another signature, or under none: what is promoted is what the gates judged.
    Two versions may hold the same runtime files (exported twice): the row of the very bundle comes first.
    """
    digest = bundle.runtime_digest(runtime.partition(":")[0])
    fitting = [
        row
        for row in comparison.rows
        if (row.runtime, row.digest, row.signed_by) == (runtime, digest, bundle.signed_by)
        and row.seeds is None
        and _same_card(row, bundle)
    ]
    return min(fitting, key=lambda row: row.bundle_digest != bundle.digest, default=None)


def read(where: str, home: Path) -> Comparison:
    """Read a comparison by path (file or folder) or by id. Raises NotFound when there is neither."""
    from fer_lab.measure import comparison

    if Path(where).exists():
        return comparison.read(where)
    named = folder_of(home) / where
    if Path(where).name == where and named.is_dir():
        return comparison.read(named)
    for found in all_of(home):
        if found.id == where:
            return found
    raise NotFound(f"no comparison {where!r}: not a path, and not below {folder_of(home)}. Run: python -m fer_lab.compare MODEL…")


@dataclass(frozen=True)
class Champion:
    """Who is champion of a registered name, and in which runtime (None: the ledger does not say)."""

    name: str
    version: int
    runtime: str | None

    def is_reference(self, comparison: Comparison) -> bool:
        """Whether the verdicts of a comparison are against this champion as it is shipped."""
        row = comparison.reference
        return (row.name, row.version) == (self.name, self.version) and self.runtime in (None, row.runtime)


def newest(home: Path, bundle: Bundle, runtime: str, champion: Champion | None) -> Comparison | None:
    """Return the newest comparison on the test split that measured this bundle in this runtime, or None.

    Comparisons on the faces of the bundle's own data come first, then those against the champion (None: there is none yet), so
    that a later comparison on or with something else does not hide the one that counts.
    """
    if runtime.partition(":")[0] not in bundle.runtimes:
        return None
    fitting = [c for c in all_of(home) if c.split == "test" and row_of(c, bundle, runtime) is not None]
    return max(fitting, key=lambda c: (_on_own_data(c, bundle), _is_against(c, champion), c.created), default=None)


def counts(comparison: Comparison, bundle: Bundle, champion: Champion | None) -> bool:
    """Whether a comparison is on the faces of the bundle's own data and against the champion: no other would be preferred."""
    return _on_own_data(comparison, bundle) and _is_against(comparison, champion)


def all_of(home: Path) -> Iterator[Comparison]:
    """Yield the comparisons of a store root; folders that hold none, or one that is unreadable, are passed over."""
    from fer_lab.measure import comparison

    for path in sorted(folder_of(home).glob(f"*/{comparison.FILE}")):
        try:
            yield comparison.read(path)
        except FerLabError:  # half a comparison is no evidence; a named one says why
            continue


def _on_own_data(comparison: Comparison, bundle: Bundle) -> bool:
    return (comparison.label_source, comparison.fingerprint) == (bundle.card.label_source, bundle.card.fingerprint)


def _is_against(comparison: Comparison, champion: Champion | None) -> bool:
    return champion is None or champion.is_reference(comparison)


def _same_card(row: Row, bundle: Bundle) -> bool:
    """Whether the gates would judge by this bundle's card: the same bundle, or one that differs in what it was exported from."""
    own = bundle.card.model_dump(mode="json", by_alias=True)
    return row.bundle_digest == bundle.digest or {**row.card, "exported_from": own["exported_from"]} == own
