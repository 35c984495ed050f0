"""What the paper's figures show, gathered from trained models; facelt.report.figures draws it."""
