"""The real trainer of a study's jobs: a tracked run below the study's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fer_lab.core.config import RunConfig
from fer_lab.search.study import Sweep
from fer_lab.search.trial import Train, Trained

if TYPE_CHECKING:
    from fer_lab.tracking.store import Store


def trainer(sweep: Sweep, store: Store, parent: str) -> Train:
    """Return a trainer that logs to child runs of `parent`."""
    from fer_lab.search.tracked import tracked_fit

    def train(
        config: RunConfig, folder: Path, *, name: str, tags: Mapping[str, str], resume: bool,
        on_run: Callable[[str], None], on_epoch: Callable[[int, dict[str, float]], None],
        should_stop: Callable[[], int | None], guard: Callable[[], None], extra: Mapping[str, float],
    ) -> Trained:  # fmt: skip
        tracked = tracked_fit(
            config, sweep.dataset, store, parent=parent, tags=tags, resume=resume, on_epoch=on_epoch, should_stop=should_stop,
            experiment=sweep.experiment, name=name, folder=folder, on_run=on_run, guard=guard, extra=extra,
        )  # fmt: skip
        result = tracked.result
        facts = {"parameters": result.parameters, "best_epoch": result.best_epoch, "epochs_run": result.epochs_run}
        return Trained(tracked.run_id, result.validation, facts)

    return train
