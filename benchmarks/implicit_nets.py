"""Nets of implicit depth, at a fixed depth for methods that know of none: ``model = "implicit_nets:ode_2"``."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from potluck.models import deq, ode
from potluck.solvers import FixedPoint, Phantom


def _ode(shape: Sequence[int], classes: int, steps: int) -> nn.Module:
    net = ode.make_odenet("odenet-cifar-like", shape, classes)
    ode.set_depth(net, steps)
    return net


def _deq(shape: Sequence[int], classes: int, steps: int) -> nn.Module:
    net = deq.make_deq("deq-xs-like", shape, classes)
    deq.set_depth(net, steps, solver=FixedPoint(), gradient=Phantom())
    return net


def ode_2(shape: Sequence[int], classes: int) -> nn.Module:
    """``odenet-cifar-like`` of two steps a stage."""
    return _ode(shape, classes, 2)


def ode_4(shape: Sequence[int], classes: int) -> nn.Module:
    """``odenet-cifar-like`` of four steps a stage."""
    return _ode(shape, classes, 4)


def ode_8(shape: Sequence[int], classes: int) -> nn.Module:
    """``odenet-cifar-like`` of eight steps a stage."""
    return _ode(shape, classes, 8)


def deq_4(shape: Sequence[int], classes: int) -> nn.Module:
    """``deq-xs-like`` of four evaluations."""
    return _deq(shape, classes, 4)


def deq_8(shape: Sequence[int], classes: int) -> nn.Module:
    """``deq-xs-like`` of eight evaluations."""
    return _deq(shape, classes, 8)


def deq_16(shape: Sequence[int], classes: int) -> nn.Module:
    """``deq-xs-like`` of sixteen evaluations."""
    return _deq(shape, classes, 16)
