// The list of memories.

import { byId, make } from "./dom.js";
import { count, method, size } from "./format.js";
import { choose, state, when } from "./state.js";

export function startMemories(show) {
  when("listed", draw);
  when("chosen", draw);
  byId("memory-list").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    choose(button.dataset.id);
    show(state.current.version ? "chat" : "memory");
  });
}

function draw() {
  const focused = document.activeElement?.closest("#memory-list button")?.dataset.id;
  byId("no-memories").hidden = state.memories.length > 0;
  byId("memory-list").replaceChildren(...state.memories.map(row));
  if (focused) byId("memory-list").querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
}

function row(memory) {
  const facts = memory.version ? `${count(memory.tokens, "token")} in ${size(memory.bytes)}` : "nothing written yet";
  return make(
    "li",
    {},
    make(
      "button",
      { data: { id: memory.id }, "aria-current": memory.id === state.current?.id ? "true" : undefined },
      make("span", { class: "name" }, memory.name ?? memory.id),
      make("span", { class: "hint" }, facts),
      make("span", { class: "hint" }, method(memory)),
    ),
  );
}
