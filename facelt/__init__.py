"""Face recognition on long-tailed data: training, measurement, audit, galleries."""

__version__ = "0.1.0"
