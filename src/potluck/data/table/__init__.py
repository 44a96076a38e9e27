"""Tables with named columns as samples and targets.

columns.py says which column is what; reading.py reads a file; survey.py counts what is in it, and surveys of several
tables add up; layout.py makes of a survey what every row is encoded by, wherever the row lies.
"""
