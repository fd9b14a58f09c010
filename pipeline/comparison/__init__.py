"""Two models on the same samples: tensors, decisions, accuracy, and what difference counts. No file is read here.

Modules: proportion, tensor_comparison, metric, score_difference, agreement, judgement, accuracy, decisions,
error_budget, layer_search, rounding_floor, tolerance.
"""
