"""Shot bands, accuracy, open-set measures; rates by group with intervals, tests and disparities."""
