"""`vsfix benchmark`: models, backends and precisions on one labelled set, their times, and two runs compared.

Modules: benchmark_file, variant, deployment, latency, result, measurement, repair_trials, row_latency, row, verdict,
benchmarking, comparing.
"""
