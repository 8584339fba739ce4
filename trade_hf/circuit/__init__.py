"""Circuits: what a compiled transformer computes, in no basis, and what is read from it."""
