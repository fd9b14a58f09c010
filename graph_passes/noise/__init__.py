"""Noise: its kinds, how a file marks it, how it is drawn and inserted, and which BatchNorm it reaches.

Modules: noise, marker, concat_slices, propagation, analysis, insertion, sampling.
"""
