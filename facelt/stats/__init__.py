"""Statistics for clustered samples: intervals, disparities, permutation tests."""
