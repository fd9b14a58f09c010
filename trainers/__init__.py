"""Networks, noise layers, data, the training loop, and the export to ONNX.

networks        initialization, noise_layers, mlp, preresnet, wide_resnet, densenet, resnext, network
training        idx_file, datasets, preprocessing, training_data, training_config, fabric_session, training_loop
runs            checkpoint, run_folder
noise of torch  noise_draws, noise_tracing, module_twin, noise_reach, noise_identification, training_noise
export          exportable, onnx_cleaning, onnx_agreement, onnx_export
torch of ONNX   onnx_call, onnx_elementwise, onnx_reductions, onnx_windows, onnx_shapes, onnx_resizing, onnx_operators,
                onnx_evaluation
no data         image_prior, distillation
"""
