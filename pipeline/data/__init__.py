"""The inputs and labels that a model is fed with.

Modules: samples, data_forms, calibration, batch_runs, random_inputs.
"""
