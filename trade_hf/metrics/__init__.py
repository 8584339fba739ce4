"""Scores for decompilers; `functional_equivalence/` is a module of the evaluate library."""
