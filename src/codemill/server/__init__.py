"""HTTP: the OpenAI, Anthropic and infill protocols over the engine, and the web page. Needs the extra `serve`."""
