"""Model files: read with every check, their weights wherever they are, written whole or not at all.

Modules: temporary_files, atomic_file, stored_tensors, file_values, named_file, external_data, local_functions,
model_file, opset.
"""
