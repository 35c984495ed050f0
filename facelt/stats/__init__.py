"""Statistics for clustered samples: intervals, differences and their tests, disparities."""
