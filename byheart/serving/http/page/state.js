// What every part of the page knows: the models, the methods, the memories, and which one is chosen.

import { all, ask, path } from "./api.js";

export const state = { models: [], methods: [], memories: [], current: undefined };

const listeners = { listed: [], chosen: [], changed: [] };

/** Call `listener` when memories were `listed`, another was `chosen`, or what the chosen one holds has `changed`. */
export function when(event, listener) {
  listeners[event].push(listener);
}

function tell(event) {
  for (const listener of listeners[event]) listener();
}

/** Fetch all of it anew; a chosen one that is gone is no longer chosen. */
export async function list() {
  const models = await ask("GET", "/v1/models");
  const [methods, memories] = await Promise.all([ask("GET", "/v1/methods"), all("/v1/memories")]);
  // A model with a memory that it reads is listed too, as MODEL:NAME.
  state.models = models.data.filter(({ memory }) => !memory);
  state.methods = methods.data;
  state.memories = memories;
  const before = state.current;
  state.current = memories.find(({ id }) => id === before?.id);
  if (before && !state.current) choose(undefined);
  else if (before && before.version !== state.current.version) tell("changed");
  tell("listed");
}

export function choose(id) {
  state.current = state.memories.find((memory) => memory.id === id);
  history.replaceState(null, "", state.current ? `#${id}` : location.pathname);
  tell("chosen");
}

/** Fetch one memory anew, after something was done to it. */
export async function refresh(id) {
  const memory = await ask("GET", path(id));
  state.memories = state.memories.map((other) => (other.id === id ? memory : other));
  if (state.current?.id === id) {
    state.current = memory;
    tell("changed");
  }
  tell("listed");
}
