"""What a model makes of rows: likelihoods of completions and refusals, no gradient step."""
