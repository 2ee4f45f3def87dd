"""The protocols, a module each: what of a body becomes a `GenerationRequest`, and how events become an answer."""
