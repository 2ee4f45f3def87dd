"""How tokens are made: the `LLM`, sampling, stops, and the loop that runs the network. Names are exported by `codemill`."""
