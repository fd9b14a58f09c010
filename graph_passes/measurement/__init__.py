"""Runs of a graph over a calibration set, stage by stage within a memory limit, and what is read from them.

Modules: resident_memory, activation_cache, moment_taps, staging, staged_run, measurement, tapped_tensors.
"""
