"""Equations: fixed points with an exact budget, their gradients, and explicit ODE steps."""

from potluck.solvers.anderson import Anderson
from potluck.solvers.fixed_point import FixedPoint, Solver
from potluck.solvers.gradient import IFT, JFB, Gradient, Phantom, Unroll
from potluck.solvers.ode import EVALUATIONS, METHODS, odeint
from potluck.solvers.solve import Result, Solution, iterate, solve

__all__ = [
    "EVALUATIONS",
    "IFT",
    "JFB",
    "METHODS",
    "Anderson",
    "FixedPoint",
    "Gradient",
    "Phantom",
    "Result",
    "Solution",
    "Solver",
    "Unroll",
    "iterate",
    "odeint",
    "solve",
]
