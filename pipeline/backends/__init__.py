"""One module for each runner, what they share, and which of them work here.

Modules: plugin_provider, execution_provider, feeds, onnxruntime_runner, reference_runner, engine_tensors,
tensorrt_runner, torch_runner, doctor, model_kind, opening.
"""
