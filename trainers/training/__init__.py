"""A training run: its configuration, its data, its steps, its checkpoints, its folder.

Modules: augmentation, fabric_session, random_streams, training_config, training_data, evaluation, shift_log,
checkpoint, recipes, run_folder, training_run, training_loop.
"""
