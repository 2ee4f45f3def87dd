"""HTTP over the engine: OpenAI's, Anthropic's and llama.cpp's protocols over one request type, and the web page."""
