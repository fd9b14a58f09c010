"""A calibration set and its statistics: moments, how sure they are, and the evidence that they carry.

Modules: batches, jackknife, moments, evidence, shrinkage, estimate, shift.
"""
