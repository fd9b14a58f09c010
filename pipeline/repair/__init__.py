"""The repair: which method, what it finds, what is written, and the report of it.

Modules: repair_config, refining, candidates, label_judge, averaging, made_inputs, plan, estimation, changed_parameters,
repair_report, repair, verdict.
"""
