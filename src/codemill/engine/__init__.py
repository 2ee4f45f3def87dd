"""How tokens are made: the `LLM`, sampling, stops, and the loop that runs the network. `codemill` exports the names."""
