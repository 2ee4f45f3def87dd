"""The protocols, a module each: what of a body becomes a `GenerationRequest`, and how events become an answer."""

from fastapi import APIRouter

from codemill.server.protocols import chat, messages, responses

ROUTERS: tuple[APIRouter, ...] = (chat.router, messages.router, responses.router)
