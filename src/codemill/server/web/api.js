// The server's API, as far as the page uses it: the OpenAI protocol, and the progress of a prompt.
import { readEvents } from "./sse.js";

/** What went wrong, in words for the person; `status` 0 means that no answer came at all. */
export class ApiFailure extends Error {
  constructor(message, { status = 0, code = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter });
  }
}

function headers(key) {
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function request(path, key, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(key), credentials: "omit", cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiFailure("The server does not answer. Is codemill serve still running?");
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

async function failureOf(response) {
  const text = await response.text().catch(() => "");
  let error = {};
  try {
    error = JSON.parse(text).error ?? {};
  } catch {
    // a proxy's page of HTML: the status says more
  }
  const message = typeof error === "string" ? error : error.message;
  const seconds = Number.parseFloat(response.headers.get("Retry-After"));
  return new ApiFailure(message || `The server answered with status ${response.status}.`, {
    status: response.status,
    code: error.code ?? null,
    retryAfter: Number.isFinite(seconds) ? seconds : null,
  });
}

/** The names of the models that the server has. */
export async function listModels(key) {
  const response = await request("v1/models", key, {});
  return (await response.json()).data.map((model) => model.id);
}

/**
 * The events of one answer: {kind: "model", model}, {kind: "progress", processed, total, ahead}, {kind: "reasoning", text},
 * {kind: "text", text}, {kind: "finish", reason} and {kind: "usage", usage}. Throws ApiFailure, or an AbortError where `signal` says stop.
 */
export async function* streamChat(body, key, signal) {
  const response = await request("v1/chat/completions", key, { method: "POST", body: JSON.stringify(body), signal });
  let finished = false;
  try {
    for await (const data of readEvents(response.body)) {
      if (data === "[DONE]") return;
      for (const event of eventsOf(JSON.parse(data))) {
        finished ||= event.kind === "finish";
        yield event;
      }
    }
  } catch (error) {
    if (error instanceof TypeError) throw new ApiFailure("The connection to the server broke off."); // how fetch says it
    throw error;
  }
  if (!finished) throw new ApiFailure("The connection ended before the answer was complete.");
}

function* eventsOf(chunk) {
  if (chunk.model) yield { kind: "model", model: chunk.model }; // a server of one model answers to any name
  if (chunk.error) throw new ApiFailure(chunk.error.message ?? "The server failed.", { status: 500, code: chunk.error.code ?? null });
  const progress = chunk.prompt_progress;
  if (progress) yield { kind: "progress", processed: progress.processed, total: progress.total, ahead: progress.num_ahead ?? null };
  const choice = chunk.choices?.[0];
  const delta = choice?.delta ?? {};
  if (delta.reasoning_content) yield { kind: "reasoning", text: delta.reasoning_content };
  if (delta.content) yield { kind: "text", text: delta.content };
  if (choice?.finish_reason) yield { kind: "finish", reason: choice.finish_reason };
  if (chunk.usage) yield { kind: "usage", usage: chunk.usage };
}
