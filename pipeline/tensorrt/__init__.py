"""TensorRT and TensorRT-RTX without a runner: the library, its log, parsed networks, engines, CUDA.

Modules: cuda, engine_layers, log, shape_profile, engine_loading, parse_errors, parsed_network, library, engine_file,
engine_readback.
"""
