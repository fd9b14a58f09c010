"""Results as a terminal shows them: tables and lines.

Modules: tables (inspections and repairs), verification_table, build_table, comparison_table.
"""
