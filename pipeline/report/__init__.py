"""The parts of every report: its sections as plain data, numbers as text, figures.

Modules: figure, accuracy_figure, benchmark_table, number_text, table, sections, budget_figure, distance_figure,
latency_figure, variance_ratio_figure, path_boxes.
"""
