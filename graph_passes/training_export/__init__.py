"""Files in training form become deployable: noise written as arithmetic, BatchNorms that use their batch.

Modules: random_variable, random_expression, random_factor, decomposed_noise, training_mode.
"""
