"""Benches: every performance claim comes from here, with its protocol and a yardstick in the same run."""
