"""What is done to a graph: find the noise, measure and repair the statistics, fold, clean. No framework, no runtime.

The modules by what they are about; in each row the later ones build on the earlier:

foundations     errors, inference (what a pass asks of a runtime), nodes, tensors, stored_values, tapped_tensors
noise           noise, marker, noise_sampling, noise_insertion
noise analysis  concat_slices, body_links, noise_spread, noise_analysis, noise_route, shift
training form   random_expression, random_field, random_factor, decomposed_noise, training_mode
measurement     batches, moments, moment_taps, resident_memory, activation_cache, staging,
                side_by_side, staged_run, measurement
evidence        jackknife, shrinkage, evidence, estimate
noise average   estimators/ (F, its distance, match)
lost noise      noise_inference/ (from the stored statistics, BatchNorm by BatchNorm)
estimators      reestimation (exact), paired, second_moment, linear_noise, analytic
patterns        constant_expression, elementwise_chain, batch_norm, primitive_batch_norm, recompose_batch_norm
passes          graph_pass, repair_statistics, remove_identities, control_flow, fold_constants
fold            node_order, graph_tree, channel_map, rounding, linear_layer, fold_candidates, fold_backward,
                fold_concat, fold_forward, affine_batch_norm, fold_batch_norm, fold_affine, value_scan
precision       element_types, integer_arithmetic, opset, constant_rounding, weight_rounding, typed_batch_norm,
                split_activations, float_cast, precision, rounded_activations, quantized_layers
shapes          tensor_shapes, symbolic_shapes, split_sequences, simplify_shapes
deployment      deployment (the order of the passes)
files           named_file, file_lock, temporary_files, atomic_file, stored_tensors, local_functions,
                file_values, external_data, model_file
"""
