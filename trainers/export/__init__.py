"""From a torch module to an ONNX file that keeps its BatchNorms and marks its noise.

Modules: noise_tracing, noise_reach, onnx_cleaning, onnx_conversion, onnxruntime_library, noise_identification,
training_noise, repair_mark, onnx_export, exporting.
"""
