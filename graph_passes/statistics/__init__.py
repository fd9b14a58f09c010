"""A calibration set and what it shows: moments, how sure they are, and the evidence that they carry.

Modules: batches, jackknife, moments, evidence, shrinkage, estimate, shift.
"""
