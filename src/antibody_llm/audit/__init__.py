"""A judge of finished jobs: what a tuned model does on fixed probes, against the aligned model that it came from."""
