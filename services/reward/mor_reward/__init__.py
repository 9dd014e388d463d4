"""Client-side reward service: training on private preferences, calibration, serving."""

__version__ = "0.1.0"
