"""BatchNorm into the layers around it, in float64, with one rounding.

Modules: candidates, channel_map, affine_batch_norm, linear_layer, backward, concat, forward, fold_batch_norm,
recompose_batch_norm, fold_affine.
"""
