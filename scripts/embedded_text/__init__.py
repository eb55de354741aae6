"""The text of the embedded model and its data sets, all written by this project; see `scripts/make_embedded.py`."""
