"""A simulator of requests, stores, links and engines, in which strategies of loading and recomputing are compared.

It is as deterministic as its seed. How links and engines behave is told here and nowhere else; the planner sees what
it would see in service: what came when, and how long a prefill took.
"""

from .active import Active, Load, Scene, Sighting, Strategy
from .bandwidth import Bandwidth
from .bound import Bound, optimum
from .experiment import BASELINES, OPTIMUM, ClassRow, Experiment, Outcome, Row, strategies_for, utilisation
from .figures import ENGINES, EngineFigures, LevelFigures, engine_figures
from .goals import Goals, goals
from .journal import Result
from .run import Simulation
from .shelf import Shelf
from .synthetic import Synthetic, synthetic
from .workload import RequestClass, Workload, WorkloadBuilder, classify

__all__ = [
    "BASELINES",
    "ENGINES",
    "OPTIMUM",
    "Active",
    "Bandwidth",
    "Bound",
    "ClassRow",
    "EngineFigures",
    "Experiment",
    "Goals",
    "LevelFigures",
    "Load",
    "Outcome",
    "RequestClass",
    "Result",
    "Row",
    "Scene",
    "Shelf",
    "Sighting",
    "Simulation",
    "Strategy",
    "Synthetic",
    "Workload",
    "WorkloadBuilder",
    "classify",
    "engine_figures",
    "goals",
    "optimum",
    "strategies_for",
    "synthetic",
    "utilisation",
]
