"""Benches: every performance claim comes from here, with its protocol and a yardstick in the same run.

Each has a file by its name; ``paper_cell`` is a part of ``paper``, and so on.
"""
