"""Log lines, metrics files, plots and FLOP counts."""
