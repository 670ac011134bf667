// What the chosen memory holds, and what can be done to it: fork, rename, download, restore, forget.

import { ask as request, once, open, page, path } from "./api.js";
import { byId, during, make, say } from "./dom.js";
import { ask } from "./dialogs.js";
import { count, method, share, size, time } from "./format.js";
import { choose, list, refresh, state, when } from "./state.js";

export function startContents(show) {
  when("chosen", () => {
    draw();
    byId("memory").scrollTop = 0;
  });
  when("changed", draw);
  byId("fork").addEventListener("click", () => fork(state.current));
  byId("rename").addEventListener("click", () => rename(state.current));
  byId("download").addEventListener("click", (event) => download(event.target, state.current));
  byId("forget").addEventListener("click", () => forget(state.current, show));
}

function draw() {
  const memory = state.current;
  say("memory-error");
  byId("no-memory").hidden = Boolean(memory);
  byId("contents").hidden = !memory;
  byId("download").hidden = !memory?.version;
  byId("memory-title").textContent = memory ? (memory.name ?? memory.id) : "Contents";
  if (!memory) return;
  byId("facts").replaceChildren(...facts(memory).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  fill(byId("writes"), memory, "writes", write, memory.version ? "Nothing of its own yet." : "Nothing yet. Paste a text above, or choose files.");
  fill(byId("versions"), memory, "versions", version, "The first write makes version 1.");
}

function facts(memory) {
  const written = memory.version
    ? `${count(memory.tokens, "token")}, ${count(memory.characters, "character")}`
    : "nothing yet";
  return [
    ["Text", written],
    ["Kept in", memory.version ? kept(memory) : ""],
    ["Slots", memory.version ? memory.slots.toLocaleString("en") : ""],
    ["Method", method(memory)],
    ["Model", memory.model],
    ["Version", memory.version ? String(memory.version) : ""],
    ["Forked from", memory.parent ? origin(memory.parent) : ""],
    ["Made", time(memory.created_at)],
    ["Last used", time(memory.last_active_at)],
    ["Expires", memory.expires_at ? time(memory.expires_at) : ""],
  ].filter(([, value]) => value);
}

/** The bytes of a memory, against those of all the keys and values of its text, where the server says what these take. */
function kept({ bytes, tokens, model }) {
  const each = tokens ? `, ${size(Math.round(bytes / tokens))} per token` : "";
  const full = tokens * (state.models.find(({ id }) => id === model)?.slot_bytes ?? 0);
  if (!full) return size(bytes) + each;
  return make(
    "span",
    {},
    make("span", {}, `${size(bytes)}${each}`),
    make("meter", { min: 0, max: full, value: Math.min(bytes, full), "aria-label": "Share of the full text's bytes" }),
    make("span", { class: "hint" }, `${share(bytes, full)} of the full text's ${size(full)}`),
  );
}

function origin({ id, version }) {
  const parent = state.memories.find((memory) => memory.id === id);
  return `${parent?.name ?? id}, version ${version}`;
}

/** A list's newest items, and a button that fetches more. */
async function fill(element, memory, kind, row, empty, after) {
  const drawn = `${memory.id} ${memory.version}`;
  element.dataset.drawn = drawn;
  try {
    const { data, has_more: more, last_id: last } = await page(path(memory.id, kind), { after });
    if (element.dataset.drawn !== drawn) return; // Another memory was chosen meanwhile.
    if (after) element.lastChild.remove();
    else element.replaceChildren();
    element.append(...data.map((item) => row(memory, item)));
    if (!more && !element.children.length) element.append(make("li", { class: "hint" }, empty));
    if (!more) return;
    const next = () => fill(element, memory, kind, row, empty, last);
    element.append(make("li", {}, make("button", { class: "quiet", on: { click: next } }, "Show more")));
  } catch (error) {
    if (element.dataset.drawn === drawn) say("memory-error", error.message);
  }
}

function write(memory, { entry: { source, at, tokens, characters } }) {
  const amount = `${count(tokens, "token")}, ${count(characters, "character")}`;
  return make(
    "li",
    {},
    make("span", { class: "name" }, source),
    make("span", { class: "hint" }, `${amount} · ${time(at)}`),
  );
}

function version(memory, item) {
  const number = item.version;
  const current = number === memory.version;
  const facts = `${count(item.tokens, "token")} in ${size(item.bytes)} · ${time(item.created_at)}`;
  const button = (says, task) =>
    make("button", { class: "quiet", "aria-label": `${says} version ${number}`, on: { click: task } }, says);
  return make(
    "li",
    {},
    make("span", { class: "name" }, `${number} · ${item.operation}`),
    make("span", { class: "hint" }, facts),
    make(
      "span",
      { class: "line" },
      current
        ? make("span", { class: "hint" }, "current")
        : button("Restore", (event) => restore(event.target, memory, number)),
      button("Fork", () => fork(memory, number)),
    ),
  );
}

function restore(button, memory, number) {
  during(button, "memory-error", async () => {
    const where = path(memory.id, "versions", number, "restore");
    await request("POST", where, { body: {}, headers: { "Idempotency-Key": once() } });
    await refresh(memory.id);
    // The button is drawn anew; a reader of the page goes on from the top of what it has changed.
    byId("memory-title").focus();
  });
}

/** The state file of the newest version, as `byheart.open_state` opens it. */
function download(button, memory) {
  during(button, "memory-error", async () => {
    const response = await open("GET", path(memory.id, "content"));
    const address = URL.createObjectURL(await response.blob());
    make("a", { href: address, download: `${memory.name ?? memory.id}-${memory.version}.safetensors` }).click();
    URL.revokeObjectURL(address);
  });
}

function fork(memory, version = memory.version) {
  const text = version
    ? `A memory of its own that begins with version ${version} of ${memory.name}. It takes no bytes until it changes.`
    : `A memory of its own, as empty as ${memory.name}.`;
  ask({ title: "Fork", text, name: `${memory.name}-2`, verb: "Fork" }, async (name) => {
    const made = await request("POST", path(memory.id, "fork"), { body: { name, ...(version && { version }) } });
    await list();
    choose(made.id);
  });
}

function rename(memory) {
  ask({ title: "Rename", name: memory.name, verb: "Rename" }, async (name) => {
    await request("POST", path(memory.id), { body: { name } });
    await refresh(memory.id);
  });
}

function forget(memory, show) {
  const versions = memory.version ? `all its versions, ${size(memory.bytes)} as of now` : "it is empty";
  const text = `${memory.name} goes for good: ${versions}. There is no way to bring it back. Forks of it stay.`;
  ask({ title: `Forget ${memory.name}?`, text, verb: "Forget", danger: true }, async () => {
    await request("DELETE", path(memory.id));
    await list();
    show("memories");
  });
}
