"""Other harnesses that run our measures, and other benchmarks that run our defences."""
