"""Finds the record that a promotion stands on: the row that measured exactly the artifact which is to be shipped.

An accuracy belongs to an artifact, not to a name: the row must carry the digest of the runtime's files, and the card that
says what the outputs mean must be the same.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        and _same_meaning(row, bundle)
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


def newest(home: Path, bundle: Bundle, runtime: str, against: tuple[str, int | None]) -> Comparison | None:
    """Return the newest comparison on the test split that measured this bundle in this runtime, or None.

    `against` is the registered name and its champion (None: none yet); comparisons whose reference that champion is come
    first, so that a later comparison with something else does not hide the one that counts.
    """
    if runtime.partition(":")[0] not in bundle.runtimes:
        return None
    fitting = [c for c in all_of(home) if c.split == "test" and row_of(c, bundle, runtime) is not None]
    return max(fitting, key=lambda c: ((c.reference.name, c.reference.version) == against, c.created), default=None)


def all_of(home: Path) -> Iterator[Comparison]:
    """Yield the comparisons of a store root; folders that hold none, or one that is unreadable, are passed over."""
    from fer_lab.measure import comparison

    for path in sorted(folder_of(home).glob(f"*/{comparison.FILE}")):
        try:
            yield comparison.read(path)
        except FerLabError:  # half a comparison is no evidence; a named one says why
            continue


def _same_meaning(row: Row, bundle: Bundle) -> bool:
    """Whether the row was judged under this card: the same bundle, or one whose outputs mean the same."""
    if row.bundle_digest == bundle.digest:
        return True
    card = bundle.card
    return list(row.card.get("labels") or ()) == list(card.labels) and row.card.get("protocol") == card.protocol
