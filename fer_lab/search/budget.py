"""What a configuration's network costs, measured before it is trained: parameters, and the median forward pass."""

from __future__ import annotations

import time

from fer_lab.core.config import RunConfig
from fer_lab.data.faces import FaceDataset

WARM_UP = 5
CALLS = 31


def measure_network(config: RunConfig, dataset: FaceDataset, *, latency: bool) -> dict[str, float]:
    """Return `parameters_m` (millions) and, when asked, `p50_ms`: the deployable torch graph, one face, one thread.

    Weights do not change either, so random ones are measured. It is a guide for the search: a noisy machine gives noisy
    values, and `fer_lab.compare` measures latency properly.
    """
    import numpy as np
    import torch

    from fer_lab.core.labels import protocol
    from fer_lab.models import backbones
    from fer_lab.models.deployable import Deployable

    classes = len(protocol(config.data.protocol).label_set.labels)
    backbone = backbones.build(config.model.backbone, classes=classes)
    measured = {"parameters_m": sum(p.numel() for p in backbone.parameters()) / 1e6}
    if not latency:
        return measured
    mean, std = backbones.statistics(config.model.backbone)
    graph = Deployable(backbone, config.train.image_size, mean, std, 1.0).eval()
    face = torch.from_numpy(dataset.pixels[:1, None].copy())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            samples_ms = []
            for _ in range(WARM_UP + CALLS):
                begun = time.perf_counter()
                graph(face)
                samples_ms.append((time.perf_counter() - begun) * 1000)
    finally:
        torch.set_num_threads(threads)
    measured["p50_ms"] = float(np.median(samples_ms[WARM_UP:]))
    return measured
