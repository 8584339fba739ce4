"""Compiled transformers: their weights on file, the compiler, the bridge to tracr, the forward pass."""
