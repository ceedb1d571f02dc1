"""Does a model draw what prompts say? GenEval, DPG-Bench and ShapesBench."""
