"""What a model is fed with.

Modules: calibration, batch_runs, random_inputs.
"""
