"""Ordinary trained transformers over a finite domain of inputs: what they compute, as a RASP program."""
