"""Face recognition on long-tailed data: training, measurement, audit, galleries."""
