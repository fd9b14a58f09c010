"""The report: one HTML file that needs nothing else, made of sections of which each is there or not.

content   sections (what a page may show, as plain data), answers (what a reader asks, in words), recovery (what a
          repair is worth)
tables    number_text, table (headings and cells), severity_view (R and the candidates), batch_norm_table,
          measurement_tables
figures   figure (SVG in the colours of the page), distance_figure, mismatch_figure, accuracy_figure, budget_figure,
          latency_figure, route_boxes
page      page (the templates, and how the page is written)
"""
