"""The protocols, a module each: what of a body becomes a `GenerationRequest`, and how events become an answer."""

from fastapi import APIRouter

from codemill.server.protocols import chat, completions, models, status, tokens

ROUTERS: tuple[APIRouter, ...] = (
    chat.router,
    completions.router,
    tokens.router,
    models.router,
    status.router,
)
