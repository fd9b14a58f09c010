"""Networks, noise layers, data, the training loop, and the export to ONNX.

networks        initialization, noise_layers, uout_kernel, noise_sites, convolution, pooled_classifier, mlp,
                preactivation, preresnet, wide_resnet, densenet, residual_block, resnext, resnet, network_families,
                network
data            user_path, images, idx_file, cifar, image_decoding, image_cropping, image_folder,
                npz_file, labelled_npz, hub_dataset, datasets
batches         preprocessing, decoded_images, training_data, batch_order, augmentation
training        learning_rate, training_config, recipes, fabric_session, random_streams, generator_states,
                process_share, moving_average, mixed_loss, epoch_losses, evaluation,
                device_fault, training_run, stop_request, training_loop
runs            torch_file, checkpoint, run_folder, shift_log, tensorboard_log, training_progress
noise of torch  noise_draws, noise_tracing, module_twin, noise_reach, noise_identification, training_noise
export          exportable, onnx_cleaning, onnx_conversion, onnx_markers, onnxruntime_library, onnx_agreement,
                onnx_export
torch of ONNX   onnx_call, onnx_elementwise, onnx_reductions, onnx_windows, onnx_shapes, onnx_resizing, onnx_operators,
                onnx_evaluation, refinement_samples, refinement
no data         image_prior, synthetic_inputs
"""
