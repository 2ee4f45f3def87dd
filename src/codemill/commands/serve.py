"""`codemill serve`: the HTTP server and web page."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from codemill.commands import add_verb, options
from codemill.commands.serve_models import define_models
from codemill.errors import CodemillError, UsageError

if TYPE_CHECKING:
    from codemill.server.registry import Registry
    from codemill.server.settings import ServerSettings

EXAMPLES = """
codemill serve
codemill serve Qwen/Qwen3-Coder-30B-A3B-Instruct --quantization int4 --port 8080
codemill serve ./coder --model small=Qwen/Qwen3-0.6B --lora sql=./sql-adapter --idle-unload 600
codemill serve --host 0.0.0.0 --api-key-file keys.txt --cors https://chat.example.com
"""
MIB, GIB = 1 << 20, 1 << 30
NEEDS_EXTRA = "serve needs packages that are not installed: pip install 'codemill[serve]'"


def register(app: typer.Typer) -> None:
    add_verb(app, serve, EXAMPLES)


def serve(
    spec: Annotated[str | None, typer.Argument(metavar="[SPEC]", help="The first model; default: embedded.")] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", "-m", metavar="[NAME=]SPEC", help="A further model; repeatable.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=DIRECTORY[@MODEL]", help="A LoRA adapter, of the first model or MODEL; repeatable."),
    ] = None,
    served_model_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What the first model is called; further ones are aliases.")
    ] = None,
    strict_model_names: Annotated[
        bool, typer.Option("--strict-model-names", help="404 for an unknown name, also where there is only one model.")
    ] = False,
    lazy: Annotated[bool, typer.Option("--lazy", help="Load the first model when it is asked for.")] = False,
    idle_unload: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Unload a model that nobody used for so long.")
    ] = None,
    max_loaded_models: Annotated[
        int | None, typer.Option(min=1, help="Models in memory at a time; others take turns.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes one that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", envvar="CODEMILL_API_KEY", help="Requests need this key; repeatable."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help="Keys, one a line.")] = None,
    allow_unauthenticated: Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Let other machines in without a key.")
    ] = False,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Web pages that may use the server; * for all; repeatable."),
    ] = None,
    allowed_host: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A name of the server, where no key is needed; repeatable.")
    ] = None,
    max_model_len: options.MaxModelLen = None,
    max_num_seqs: Annotated[int, typer.Option(min=1, help="Requests that run at the same time.")] = 32,
    max_waiting: Annotated[int, typer.Option(min=0, help="Requests that may wait; others are told to retry.")] = 64,
    replicas: Annotated[int, typer.Option(min=1, help="Processes that share the requests of a model.")] = 1,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantization: options.Quantization = None,
    threads: options.Threads = None,
    speculative: options.Speculative = None,
    prefix_cache_dir: options.PrefixCacheDir = None,
    kv_cache_dtype: options.KvCacheDtype = "auto",
    kv_cache_gib: Annotated[
        float | None, typer.Option(help="KV cache of each model; default: a share of the free memory.")
    ] = None,
    max_body_mib: Annotated[float, typer.Option(help="Largest body of a request.")] = 32,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections at the same time.")] = 1000,
    max_request_seconds: Annotated[
        float | None, typer.Option(help="A request that takes longer ends with what it has.")
    ] = None,
    shutdown_seconds: Annotated[float, typer.Option(help="What requests may still take after Ctrl-C.")] = 30,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    log_prompts: Annotated[
        bool, typer.Option("--log-prompts", help="Bodies of requests and answers in the log.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Say where the server is as one JSON object.")] = False,
) -> None:
    """Serve models over HTTP to OpenAI, Anthropic and llama.cpp clients, and a web page to chat on."""
    _check_extra()
    from codemill.server.log import set_up_logging
    from codemill.server.registry import Registry
    from codemill.server.settings import ServerSettings

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=_keys(api_key or [], api_key_file),
        cors_origins=tuple(map(_origin, cors or [])),
        allowed_hosts=tuple(allowed_host or []),
        max_body_bytes=int(max_body_mib * MIB),
        max_connections=max_connections,
        max_request_seconds=max_request_seconds,
        shutdown_seconds=shutdown_seconds,
        log_format=log_format,  # type: ignore[arg-type]  # it checks that itself
        log_prompts=log_prompts,
    )
    _check_reach(settings, allow_unauthenticated)
    _check_above_zero("--idle-unload", idle_unload)
    _check_above_zero("--kv-cache-gib", kv_cache_gib)
    definitions = define_models(spec, model or [], lora or [], served_model_name or [], speculative)
    llm_options = {
        "dtype": dtype,
        "device": device,
        "quantization": quantization,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "prefix_cache_dir": prefix_cache_dir,
        "kv_cache_dtype": kv_cache_dtype,
        "kv_cache_bytes": None if kv_cache_gib is None else int(kv_cache_gib * GIB),
    }
    from codemill.server.model_loading import free_memory

    registry = Registry(
        definitions,
        _loader(llm_options, replicas, threads, max_waiting),
        max_loaded=max_loaded_models,
        idle_seconds=idle_unload,
        free=free_memory,
        is_lazy=lazy,
        strict_names=strict_model_names,
    )
    set_up_logging(settings.log_format)
    if "*" in settings.cors_origins and not settings.needs_key:
        logging.getLogger("codemill.server").warning(
            "--cors * without a key: each web page in a browser that reaches this server may use it"
        )
    _run(registry, settings, as_json)


def _run(registry: "Registry", settings: "ServerSettings", as_json: bool) -> None:
    from codemill.server.app import create_app
    from codemill.server.http_server import run_server
    from codemill.server.listening import open_sockets, url_of

    sockets = open_sockets(settings.host, settings.port)
    url = url_of(sockets[0], settings.host)
    run_server(
        create_app(registry, settings),
        registry,
        settings,
        sockets,
        on_ready=lambda: _announce(url, registry, settings, as_json),
    )


def _announce(url: str, registry: "Registry", settings: "ServerSettings", as_json: bool) -> None:
    """One line, which a program that started the server waits for."""
    names = [card.name for card in registry.models()]
    if as_json:
        line = json.dumps({"url": url, "pid": os.getpid(), "models": names, "needs_key": settings.needs_key})
    else:
        key = "an API key is needed" if settings.needs_key else "no API key is needed"
        line = f"Serving {', '.join(names)} on {url} ({key}); Ctrl-C ends."
    with suppress(OSError):  # nobody has to listen
        print(line, flush=True)


def _loader(llm_options: dict[str, Any], replicas: int, threads: int | None, max_waiting: int) -> Any:
    """What loads a model; a wrong option is found here, and not with the first request."""
    from codemill.engine_config import EngineConfig
    from codemill.server.model_loading import EngineLoader

    of_llm = ("dtype", "device", "quantization", "max_model_len")
    EngineConfig.from_options({name: value for name, value in llm_options.items() if name not in of_llm})
    if replicas == 1:
        options.set_threads(threads)
        return EngineLoader(llm_options, max_waiting=max_waiting)
    each = None if threads is None else max(1, threads // replicas)
    return EngineLoader(llm_options, replicas, each, max_waiting)


def _keys(given: list[str], file: Path | None) -> tuple[str, ...]:
    from codemill.server.access import check_keys, read_keys

    return check_keys([*given, *(read_keys(file) if file is not None else [])])


def _origin(text: str) -> str:
    """A browser sends an origin without a slash at its end."""
    origin = text.rstrip("/")
    if origin != "*" and "://" not in origin:
        raise UsageError(f"--cors {text}: give an origin such as https://chat.example.com, or * for all")
    return origin


def _check_reach(settings: "ServerSettings", allow_unauthenticated: bool) -> None:
    """Raise UsageError if other machines could use the server without a key, and nobody said that they may."""
    from codemill.server.settings import is_loopback

    if not settings.needs_key and not allow_unauthenticated and not is_loopback(settings.host):
        raise UsageError(
            f"--host {settings.host} lets other machines use the server: give --api-key or --api-key-file, "
            "or --allow-unauthenticated if anybody may"
        )


def _check_above_zero(option: str, value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"{option} {value:g}: must be above 0")


def _check_extra() -> None:
    """Raise CodemillError if what the server is built on is not installed."""
    try:
        import fastapi
        import uvicorn
    except ImportError:
        raise CodemillError(NEEDS_EXTRA) from None
    del fastapi, uvicorn
