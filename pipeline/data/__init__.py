"""The inputs and labels that a model is fed with.

Modules: samples, fitting, tables, data_forms, loading, calibration, batch_runs, random_inputs.
"""
