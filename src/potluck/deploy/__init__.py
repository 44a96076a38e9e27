"""Real devices: serving a run, joining it, playing one peer's part; shares and models that travel as files."""
