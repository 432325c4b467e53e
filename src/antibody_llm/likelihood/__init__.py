"""Likelihoods of completions and refusals under a model; no gradient step."""
