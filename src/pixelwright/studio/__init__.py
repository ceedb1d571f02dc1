"""The web page of `pixelwright studio`: draw, compare, watch runs.

`page.py` lays it out; the other modules know nothing of Gradio.
"""
