"""What a run tells: its log, metrics, plots and report."""
