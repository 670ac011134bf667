// What the page asks of the server. Every failure is one Error whose message says what to do.

const KEY = "byheart-key";

/** The API key: kept for this tab alone. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => sessionStorage.setItem(KEY, value),
  clear: () => sessionStorage.removeItem(KEY),
};

/** A request that did not succeed; `status` is 0 where there was no answer at all. */
export class Failure extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** The path of a memory, and of what belongs to it. */
export function path(id, ...rest) {
  return ["/v1/memories", ...[id, ...rest].map((part) => encodeURIComponent(part))].join("/");
}

let refused = () => {};

/** Call `listener` with what the server says when it does not take the key. */
export function onRefused(listener) {
  refused = listener;
}

/** A request; gives the response once its status is good. */
export async function open(method, where, { body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body !== undefined) sent["Content-Type"] = "application/json";
  let response;
  try {
    const content = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(where, { method, headers: sent, body: content, signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The server does not answer. Check that `byheart serve` is running, then try again.");
  }
  if (response.ok) return response;
  const failure = await failed(response);
  if (failure.status === 401) refused(failure.message);
  throw failure;
}

/** A request whose answer is JSON. */
export async function ask(method, where, options) {
  const response = await open(method, where, options);
  return response.json();
}

/** One page of a list, newest first: the part after the item `after`. */
export function page(where, { limit = 20, after } = {}) {
  const query = new URLSearchParams({ limit, ...(after && { after }) });
  return ask("GET", `${where}?${query}`);
}

/** All of a list. */
export async function all(where) {
  const items = [];
  for (let after; ; ) {
    const { data, has_more: more, last_id: last } = await page(where, { limit: 100, after });
    items.push(...data);
    if (!more || !data.length || last === after) return items;
    after = last ?? data.at(-1).id;
  }
}

/** The events of a stream, parsed, up to `[DONE]`. Raises Failure for one that says an error. */
export async function* events(response) {
  const lines = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value = "" } = await lines.read();
      const parts = (rest + value).split(/\r?\n/);
      rest = parts.pop();
      for (const line of parts) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new Failure(event.error.message, 200, event.error.code);
        yield event;
      }
      if (done) return;
    }
  } finally {
    await lines.cancel().catch(() => {});
  }
}

async function failed(response) {
  const error = await response.json().then((body) => body.error ?? {}, () => ({}));
  const wait = Number(response.headers.get("retry-after"));
  const again = response.status === 429 && wait ? ` Try again in ${wait} s.` : "";
  const message = error.message ?? `The server answered ${response.status} ${response.statusText}.`;
  return new Failure(message + again, response.status, error.code);
}

/** A name for one request, so that it is done once however often it is sent. */
export function once() {
  // `crypto.randomUUID` is missing where a page comes over plain HTTP from another machine.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
