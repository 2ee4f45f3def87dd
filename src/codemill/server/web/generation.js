// One answer being made: the request, the stream, and how fast it goes.
import { streamChat } from "./api.js";

/** Sampling parameters that go into the request as they are, where the person gave them. */
export const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed"];

export function requestBody(model, messages, params) {
  const body = { model, messages, stream: true, stream_options: { include_usage: true }, return_progress: true };
  for (const name of NUMBERS) if (typeof params[name] === "number") body[name] = params[name];
  const stop = (params.stop ?? "").split("\n").filter(Boolean);
  if (stop.length) body.stop = stop;
  if (params.thinking) body.chat_template_kwargs = { enable_thinking: params.thinking === "on" };
  return body;
}

/** Fills `message` with the answer. Calls `onchange()` whenever something about it is new. */
export class Generation {
  constructor(thread, message, key, onchange) {
    this.thread = thread;
    this.message = message;
    this.key = key;
    this.onchange = onchange;
    this.abort = new AbortController();
    this.progress = null; // of the prompt, until the first token
    this.speed = new Speed();
  }

  stop() {
    this.abort.abort();
  }

  async run() {
    const { thread, message } = this;
    const body = requestBody(message.model, thread.prompt(message), thread.params);
    try {
      for await (const event of streamChat(body, this.key, this.abort.signal)) this.take(event);
      message.state = "done";
    } catch (error) {
      if (error.name === "AbortError") message.state = "stopped";
      else this.fail(error);
    }
    message.stats = this.speed.summary();
    this.progress = null;
    thread.updated = Date.now();
    this.onchange();
  }

  fail(error) {
    const { message: text, status = 0, code = null, retryAfter = null } = error;
    this.message.state = "failed";
    this.message.error = { text, status, code, retryAt: retryAfter === null ? null : Date.now() + retryAfter * 1000 };
  }

  take(event) {
    if (event.kind === "progress") this.progress = event;
    else if (event.kind === "reasoning" || event.kind === "text") this.grow(event);
    else if (event.kind === "model") this.message.model = event.model;
    else if (event.kind === "finish") this.message.finish = event.reason;
    else this.speed.usage = event.usage;
    this.onchange();
  }

  grow({ kind, text }) {
    this.progress = null;
    this.speed.token();
    if (kind === "reasoning") this.message.reasoning += text;
    else this.message.content += text;
    if (kind === "reasoning") this.message.thought = this.speed.sinceFirst; // seconds
  }
}

/** Time to the first token and tokens a second. Pieces of text are counted until the server says how many tokens they were. */
export class Speed {
  constructor(now = () => performance.now()) {
    this.now = now;
    this.started = now();
    this.first = null;
    this.last = null;
    this.pieces = 0;
    this.usage = null;
  }

  token() {
    this.last = this.now();
    this.first ??= this.last;
    this.pieces += 1;
  }

  /** Seconds since the request was sent. */
  get elapsed() {
    return (this.now() - this.started) / 1000;
  }

  get sinceFirst() {
    return (this.last - this.first) / 1000;
  }

  /** Tokens a second after the first; null before there are two. */
  rate(tokens = this.usage?.completion_tokens ?? this.pieces) {
    const seconds = (this.last - this.first) / 1000;
    return this.first !== null && tokens > 1 && seconds > 0 ? (tokens - 1) / seconds : null;
  }

  summary() {
    return {
      tokens: this.usage?.completion_tokens ?? null,
      prompt: this.usage?.prompt_tokens ?? null,
      cached: this.usage?.prompt_tokens_details?.cached_tokens ?? null,
      firstToken: this.first === null ? null : (this.first - this.started) / 1000,
      rate: this.rate(),
    };
  }
}
