"""Two small measurements, each as a ratio within one run: the truncated SVD, and inference of a compact net.

    python benchmarks/speed/svd_micro.py [--threads 1] [--repeats 3]

1. Every factorised layer of ``resnet18`` at rank factor 8, weights from a seeded initialisation: the path that
   ``potluck.lowrank.svd`` chooses against ``torch.linalg.svd``. Targets: 3 times as fast, and an error of truncation
   within 1 % of the best.
2. ``cnn`` against its compact form at batch 1 and 64. A fresh net is not low-rank, so the ranks are those that hold
   90 % of the energy after each weight's spectrum was made to decay as 1/i, which stands for a trained net.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from potluck.core import seeds
from potluck.core.types import Inputs
from potluck.lowrank.factorise import compact, low_rank_layers
from potluck.lowrank.layers import candidates, factorisable, ranks_by_factor
from potluck.lowrank.matrix import from_matrix, to_matrix
from potluck.lowrank.svd import decompose
from potluck.nets.zoo import count_parameters, make

FACTOR = 8


def best_of(repeats: int, call: Callable[[], Any]) -> float:
    """The least seconds of ``repeats`` calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_svd(repeats: int) -> None:
    """Prints one line per distinct shape, and the sum over all layers."""
    net = make("resnet18", Inputs((3, 32, 32)), 10, "group")
    ranks = ranks_by_factor(factorisable(net), FACTOR)
    print(f"resnet18, rank factor {FACTOR}: {len(ranks)} layers, milliseconds and excess error\n")
    heads = ("linalg.svd", "chosen", "exact", "ratio", "excess")
    print(f"{'matrix':>12} {'rank':>5} {'layers':>6}" + "".join(f"{head:>11}" for head in heads))
    by_shape: dict[tuple[int, ...], list[str]] = {}
    weights = {name: to_matrix(net.get_parameter(f"{name}.weight").detach(), "ok_ik") for name in ranks}
    for name, m_MN in weights.items():
        by_shape.setdefault(tuple(m_MN.shape), []).append(name)
    reference, chosen = 0.0, 0.0
    for shape, names in by_shape.items():
        m_MN, rank = weights[names[0]], ranks[names[0]]
        slow = best_of(repeats, lambda m_MN=m_MN: torch.linalg.svd(m_MN, full_matrices=False))
        quick = best_of(repeats, lambda m_MN=m_MN, rank=rank: seeded(m_MN, rank))
        exact = best_of(repeats, lambda m_MN=m_MN, rank=rank: decompose(m_MN, "layer", rank=rank))
        excess = max(excess_error(weights[name], rank) for name in names)
        reference, chosen = reference + slow * len(names), chosen + quick * len(names)
        figures = f"{slow * 1e3:11.1f}{quick * 1e3:11.1f}{exact * 1e3:11.1f}{slow / quick:11.1f}{excess:11.2%}"
        print(f"{shape[0]:>6}x{shape[1]:<5} {rank:>5} {len(names):>6}{figures}")
    print(f"\nall layers: {reference:.2f} s -> {chosen:.2f} s, {reference / chosen:.1f} times as fast\n")


def seeded(m_MN: Tensor, rank: int) -> Tensor:
    """The truncation by the path that the rank, the shape and a generator choose."""
    return decompose(m_MN, "layer", rank=rank, generator=seeds.generator(0, 0, 0, "svd")).truncated(rank)


def excess_error(m_MN: Tensor, rank: int) -> float:
    """How much larger the error of the chosen path is than that of the best approximation, as a share."""
    best = float(torch.linalg.svdvals(m_MN.double())[rank:].square().sum().sqrt())
    return float((m_MN - seeded(m_MN, rank)).norm()) / best - 1


def measure_inference(repeats: int) -> None:
    """Prints milliseconds of the full and the compact ``cnn``, calls interleaved, for two batch sizes."""
    net = make("cnn", Inputs((1, 28, 28)), 10, "group").eval()
    for layer in candidates(net).values():
        decay(layer)
    small = compact(net, 0.9).eval()
    ranks = {name: layer.v.shape[0] for name, layer in low_rank_layers(small).items()}
    print(f"cnn: {count_parameters(net):,} parameters -> {count_parameters(small):,}, ranks {ranks}")
    for batch in (1, 64):
        x_BCHW = torch.randn(batch, 1, 28, 28)
        full, less = [], []
        with torch.inference_mode():
            net(x_BCHW), small(x_BCHW)
            for _ in range(20 * repeats):
                full.append(best_of(1, lambda x=x_BCHW: net(x)))
                less.append(best_of(1, lambda x=x_BCHW: small(x)))
        middle, smaller = sorted(full)[len(full) // 2], sorted(less)[len(less) // 2]
        print(f"batch {batch:>3}: {middle * 1e3:8.3f} ms -> {smaller * 1e3:8.3f} ms, ratio {middle / smaller:.2f}")


def decay(layer: nn.Linear | nn.Conv2d) -> None:
    """Gives the weight singular values proportional to 1/i, its singular vectors and its norm unchanged."""
    p_MK, s_K, qt_KN = torch.linalg.svd(to_matrix(layer.weight.detach(), "o_ikk"), full_matrices=False)
    new_K = 1.0 / torch.arange(1, s_K.numel() + 1)
    new_K *= s_K.norm() / new_K.norm()
    layer.weight.data = from_matrix((p_MK * new_K) @ qt_KN, layer.weight.shape, "o_ikk")


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {given.threads} thread(s), best of {given.repeats}\n")
    measure_svd(given.repeats)
    measure_inference(given.repeats)


if __name__ == "__main__":
    main()
