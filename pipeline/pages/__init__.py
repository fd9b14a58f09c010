"""The HTML pages: tables, answers in words, templates.

Modules: batch_norm_table, recovery, severity_view, answers, benchmark_details, measurement_tables, page,
benchmark_page, inspection_page.
"""
