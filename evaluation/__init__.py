"""Is an output right, is a policy better: decision metrics and the statistics of the deployment gate."""
