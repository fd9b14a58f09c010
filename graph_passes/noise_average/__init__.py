"""F, the network averaged over its noise: how it is sampled, and R, how far a deployed network is from it.

Modules: divergence, samples, taps, upstream, noise_average, severity, nearness, stored_statistics.
"""
