"""Many runs of the lab as one table: cells, the processes that carry them out, what is planned and what is printed."""
