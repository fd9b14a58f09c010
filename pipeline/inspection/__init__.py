"""The inspection of a model before anything is changed: its BatchNorms, its noise, R, and which fault it has.

Modules: fault, preparation, lost_noise, noise_study, batch_norm_row, inspection, diagnosis.
"""
