"""The protocols, a module each: what of a body becomes a `GenerationRequest`, and how events become an answer."""

from fastapi import APIRouter

from codemill.server.protocols import (
    chat,
    completions,
    embeddings,
    infill,
    messages,
    mistral_fim,
    models,
    responses,
    status,
    tokens,
)

ROUTERS: tuple[APIRouter, ...] = (
    chat.router,
    completions.router,
    embeddings.router,
    responses.router,
    messages.router,
    infill.router,
    mistral_fim.router,
    tokens.router,
    models.router,
    status.router,
)
