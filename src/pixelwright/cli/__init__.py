"""The commands, a module each: `parser()` declares the options, `run(options)` does the work."""
