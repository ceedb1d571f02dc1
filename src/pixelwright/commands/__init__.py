"""The verbs of the command line, a module each: `parser()` tells the settings, `run(options)` does the work."""
