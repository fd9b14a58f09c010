"""The report: one HTML file that needs nothing else, made of sections of which each is there or not.

content   sections (what a page may show, as plain data)
page      page (the template, and how it is written)
"""
