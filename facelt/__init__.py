"""facelt: face recognition trained on long-tailed data, measured on people it has never seen."""
