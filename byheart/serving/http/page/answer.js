// One answer, streamed into its place.

import { events, open } from "./api.js";
import { count } from "./format.js";

/**
 * Ask, and show the answer as it comes. Never fails: `place` has the `text`, and the `problem` if there was one.
 * `follow` is called with each change of what is shown.
 */
export async function answer(body, place, signal, follow) {
  let usage;
  let reason;
  try {
    const response = await open("POST", "/v1/chat/completions", { body, signal });
    for await (const event of events(response)) {
      usage = event.usage ?? usage;
      const choice = event.choices?.[0];
      reason = choice?.finish_reason ?? reason;
      const more = choice?.delta?.content;
      if (more) follow(() => append(place, more));
    }
    if (!reason) throw new Error("The connection was cut before the answer was complete. Ask again.");
    follow(() => note(place, done(body, reason, usage)));
    if (!place.text) place.problem = "The answer is empty. Ask in other words.";
  } catch (error) {
    const stopped = error.name === "AbortError";
    place.problem = stopped ? "" : error.message;
    follow(() => note(place, stopped ? "Stopped." : error.message, !stopped));
  }
}

function append(place, more) {
  place.text += more;
  // A text node of its own for each piece: what is selected stays selected.
  place.shown.append(more);
}

function note(place, text, error = false) {
  place.note.textContent = text;
  place.note.classList.toggle("error", error);
}

function done(body, reason, usage) {
  const cut = reason === "length" ? `Cut after ${count(body.max_tokens, "token")}. ` : "";
  if (!usage) return cut;
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const from = cached ? `, ${cached.toLocaleString("en")} of them from the memory` : "";
  return `${cut}${count(usage.completion_tokens, "token")}; ${count(usage.prompt_tokens, "token")} read${from}`;
}
