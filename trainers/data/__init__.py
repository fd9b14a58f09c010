"""Data sets in the forms that people have them, their preprocessing, and weights. No torch but for the last two.

Modules: cifar, images, hub_dataset, idx_file, image_folder, npz_file, datasets, preprocessing,
loader_order, torch_file, weights_file.
"""
