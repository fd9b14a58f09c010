"""Graphs in float16, bfloat16 and eight bits: the cast, its constants, and the values that a type can't hold.

Modules: weight_rounding, constant_rounding, integer_arithmetic, float_cast, typed_batch_norm, precision,
quantized_layers, rounded_activations, value_scan.
"""
