"""How long a model withstands an attacker who owns its weights, and what its defence costs.

Reference: D. Rosati et al., "Immunization against harmful fine-tuning attacks", Findings of EMNLP 2024, 2402.16382.
"""
