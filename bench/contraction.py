"""c = a @ b at 512^3 (f32, one thread and all): NumPy's BLAS and PyTorch's MKL."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

import nnc
from bench import peak, peers
from bench.measure import Result, alternate, summarise

HERE = Path(__file__).parent


def run(n: int = 512, seconds: float = 3.0) -> list[Result]:
    model = nnc.load(HERE / "programs" / "contraction.nn")
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), dtype=np.float32) for _ in range(2))
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert np.allclose(model.product(a, b), want, rtol=1e-4, atol=1e-3)
    out = []
    for threads in sorted({1, peers.cores()}):
        model.threads = threads
        candidates = {"nnc": lambda: model.product(a, b)}
        with peers.threads(threads) as limited:
            if limited:
                candidates["numpy"] = lambda: a @ b
            torch = peers.torch()
            if torch is not None:
                x, y = torch.from_numpy(a), torch.from_numpy(b)
                candidates["torch"] = partial(torch.mm, x, y)
            samples = alternate(candidates, seconds)
        roof = peak.measure() * threads
        out.append(summarise(f"contraction {n}^3", samples, threads, 2.0 * n**3, roof))
    return out
