"""Networks: those of denoisers, rows of `table.NETWORKS`, and those of features and of LPIPS."""
