"""What a user does: the command line, calibration data, backends, repair, verification, reports.

command line    cli (the group), commands/ (one module for each), terminal_text, console, tables, output_file
data            calibration, random_inputs, batch_runs
runtimes        backends/ (one module for each runner), environment, gpu_state, doctor
inspect         preparation, fault, lost_noise, inspection, diagnosis, inspection_page
optimize        repair_config, method_choice, made_inputs, label_judge, noise_study, refining, candidates, averaging,
                estimation, editing, changed_parameters, rounding_floor, repair, repair_report, casting,
                accuracy, quantizer, quantization, optimization
build           build_config, file_description, precision_proof, building, build_progress, build_table,
                engine_sidecar
package         served_model, text_format, triton_config, kserve, packaging
verify          shared_inputs, proportion, tensor_comparison, decisions, tolerance, model_description, error_budget,
                tappable, layer_search, verification, verification_files, verification_table
benchmark       benchmark/
train, export   training_network, exporting
report          report/ (sections, tables, figures, the page), demo
"""
