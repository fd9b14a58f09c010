"""A torch module brought to its noise-averaged network, in place and without an export.

Modules: module_samples, module_noise, noisy_forward, regions, recording, unit_parameters, taps, unit_repair,
repair_report, module_repair.
"""
