"""The noise layers, the sites that they stand at, and the layers that all networks share.

Modules: image_layers, uout_kernel, noise_layers, noise_sites.
"""
