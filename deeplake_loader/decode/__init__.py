"""Stored bytes to arrays for training: what to make of them (transforms) and the decoders that make it."""
