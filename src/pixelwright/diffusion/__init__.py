"""The path from noise to data and its loss, solvers, guidance, and sampling a model."""
