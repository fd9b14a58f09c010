"""The noise layers, the sites that they stand at, the layers that all networks share, and the mark of a repaired layer.

Modules: image_layers, uout_kernel, noise_layers, noise_sites, repair_mark.
"""
