"""Many runs of the lab as one table: cells, the processes that run them, plans and reports."""
