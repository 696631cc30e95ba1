"""How good a generated front is: metrics, baselines, and intervals that know which rows share an outfit."""

from .baselines import GeneratedFront, MirroredBack, NearestTrainingFront
from .compare import measure, summarise, summarise_presences, summarise_sides
from .metrics import METRICS, Metric, colour_difference, edge_error, l1, presence, side_correct, ssim
from .statistics import Interval, mean_intervals, share_interval

__all__ = [
    "METRICS",
    "GeneratedFront",
    "Interval",
    "Metric",
    "MirroredBack",
    "NearestTrainingFront",
    "colour_difference",
    "edge_error",
    "l1",
    "mean_intervals",
    "measure",
    "presence",
    "share_interval",
    "side_correct",
    "ssim",
    "summarise",
    "summarise_presences",
    "summarise_sides",
]
