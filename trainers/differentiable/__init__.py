"""An ONNX graph evaluated in torch: refinement by gradient, and inputs made from the model alone.

Modules: image_prior, onnx_call, onnx_elementwise, onnx_reductions, onnx_resizing, onnx_shapes, onnx_windows,
onnx_evaluation, refinement_target, refinement_samples, refinement, synthetic_inputs.
"""
