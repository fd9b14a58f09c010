"""Several models, backends and precisions side by side: accuracy, agreement, latency, and what the repair was worth.

variant             one model on one backend in one precision
deployment          the file that such a row runs: cast, quantised, built
measurement         what a row gives, and how that compares with another
latency, row_latency, gpu_watch    how long they take, in turn, and what the GPU does meanwhile
repair_trials       repairs by several methods and numbers of images
result, row, row_layers, verdict    what was found, and where a row departs
benchmark_table, benchmark_page, benchmark_details, predictions    the terminal's view, the page, the raw decisions
benchmarking        all of it

benchmark_file      what it wrote, read back
metric, comparing   two runs, and what became better or worse
comparison_table    the terminal's view of that

benchmark_progress  the bar, or lines of the log
"""
