"""Tensors only: norms, secants, perturbations, likelihoods."""
