"""The search of an attacker against each defence of a matrix, and the worst case that it comes to."""
