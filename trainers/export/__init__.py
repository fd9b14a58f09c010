"""From a torch module to an ONNX file that keeps its BatchNorms and marks its noise.

Modules: module_signature, example_inputs, noise_tracing, noise_reach, onnx_cleaning, onnx_conversion,
onnxruntime_library, noise_identification, training_noise, onnx_export, exported_program, exporting.
"""
