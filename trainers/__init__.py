"""Networks, noise layers, data, the training loop, and the export to ONNX.

data            images, idx_file, cifar, image_folder, npz_file, hub_dataset, datasets, preprocessing, torch_file
layers          noise_layers, uout_kernel, noise_sites, image_layers
networks        mlp, preactivation, densenet, residual, network
training        augmentation, training_config, recipes, fabric_session, random_streams, training_data, evaluation,
                shift_log, checkpoint, run_folder, training_run, training_loop
export          noise_tracing, noise_reach, noise_identification, training_noise (the noise of a torch module);
                onnx_cleaning, onnx_conversion, onnxruntime_library, onnx_export
differentiable  onnx_call, onnx_elementwise, onnx_reductions, onnx_windows, onnx_shapes, onnx_resizing,
                onnx_evaluation (an ONNX graph in torch); refinement_samples, refinement, image_prior, synthetic_inputs
"""
