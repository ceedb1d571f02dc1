"""The verbs, a module each: `parser()` tells the settings, `run(options)` does the work."""
