"""How fast, beside what: the plain reading of the papers, and what measures it against our models."""
