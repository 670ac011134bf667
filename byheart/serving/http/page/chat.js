// The conversation with the chosen memory, and beside it with another one where two are compared.

import { byId, make, say } from "./dom.js";
import { answer } from "./answer.js";
import { refresh, state, when } from "./state.js";

// Conversations by the memories that they are with: a list of turns, each a question and its answers.
const conversations = new Map();
const WITHOUT = "without";
let stopping;

export function startChat() {
  when("listed", drawChoices);
  when("changed", draw);
  when("chosen", () => {
    stopping?.abort();
    say("chat-error");
    byId("remember").checked = false; // What is said next is meant for another memory.
    drawChoices();
    draw();
  });
  byId("compare").addEventListener("change", () => {
    stopping?.abort();
    draw();
  });
  byId("question-form").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    send();
  });
  byId("stop").addEventListener("click", () => stopping?.abort());
  addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) stopping?.abort();
  });
  byId("new-chat").addEventListener("click", () => {
    stopping?.abort();
    conversations.delete(name());
    draw();
    byId("question").focus();
  });
}

/** Whom a question is put to: the chosen memory, and the one it is compared with. */
function sides() {
  const chosen = byId("compare").value;
  const other = chosen === WITHOUT ? { name: "without a memory", model: state.current?.model } : byIdOf(chosen);
  return [state.current, other].filter(Boolean);
}

function byIdOf(id) {
  return state.memories.find((memory) => memory.id === id);
}

function name() {
  return sides().map(({ id = WITHOUT }) => id).join(" ");
}

function turns() {
  if (!conversations.has(name())) conversations.set(name(), []);
  return conversations.get(name());
}

function drawChoices() {
  const select = byId("compare");
  const chosen = select.value;
  const others = state.memories.filter(({ id, version }) => version && id !== state.current?.id);
  const options = [["", "nothing"], [WITHOUT, "no memory"], ...others.map(({ id, name }) => [id, name ?? id])];
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  select.value = options.some(([value]) => value === chosen) ? chosen : "";
}

function draw() {
  const usable = Boolean(state.current?.version);
  byId("chat-title").textContent = state.current ? `Chat with ${state.current.name ?? state.current.id}` : "Chat";
  for (const field of byId("question-form").querySelectorAll("textarea, input, #send")) field.disabled = !usable;
  byId("compare").disabled = !usable;
  byId("remember").disabled = !usable || Boolean(byId("compare").value);
  byId("remember").checked &&= !byId("remember").disabled;
  byId("new-chat").hidden = !usable || !turns().length;
  byId("turns").replaceChildren(...(usable && turns().length ? turns().map(({ element }) => element) : [emptiness()]));
  byId("turns").scrollTop = byId("turns").scrollHeight;
}

function emptiness() {
  const text = !state.current
    ? "Choose a memory, or make one."
    : state.current.version
      ? "Ask a question. The text is not read again, however long it is."
      : "Nothing is written yet. Add a text first, then ask about it.";
  return make("p", { class: "empty" }, text);
}

/** The conversation so far as one side knows it. */
function history(side) {
  return turns().flatMap(({ question, answers }) =>
    answers[side]?.text
      ? [{ role: "user", content: question }, { role: "assistant", content: answers[side].text }]
      : [],
  );
}

async function send() {
  const box = byId("question");
  const question = box.value.trim();
  if (!question || stopping || box.disabled) return;
  const asked = sides();
  const requests = asked.map((memory, side) => body(memory, [...history(side), { role: "user", content: question }]));
  const turn = { question, answers: [], element: undefined };
  const boxes = asked.map((memory) => column(memory, asked.length > 1));
  turn.element = make(
    "article",
    { class: "turn" },
    make("p", { class: "question" }, question),
    make("div", { class: asked.length > 1 ? "answers two" : "answers" }, ...boxes.map(({ element }) => element)),
  );
  const conversation = turns();
  conversation.push(turn);
  box.value = "";
  say("chat-error");
  draw();
  working(true);
  stopping = new AbortController();
  const { signal } = stopping;
  turn.answers = boxes;
  await Promise.all(boxes.map((place, side) => answer(requests[side], place, signal, follow)));
  stopping = undefined;
  working(false);
  settle(conversation, turn);
  if (requests[0].memory?.write && turn.answers[0].text) refresh(asked[0].id).catch((error) => say("chat-error", error.message));
}

/** A turn that got no answer at all is taken back, and its question returns to the box. */
function settle(conversation, turn) {
  if (turn.answers.some(({ text }) => text)) return;
  const problem = turn.answers.find(({ problem }) => problem)?.problem;
  conversation.splice(conversation.indexOf(turn), 1);
  const box = byId("question");
  box.value = [turn.question, box.value].filter(Boolean).join("\n");
  draw();
  say("chat-error", problem);
  box.focus();
}

function working(now) {
  byId("send").hidden = now;
  byId("stop").hidden = !now;
  byId("turns").setAttribute("aria-busy", String(now));
}

/** Keep the end in view, unless the reader has scrolled back. */
function follow(change) {
  const log = byId("turns");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
  change();
  if (atEnd) log.scrollTop = log.scrollHeight;
}

/** Where one side's answer goes. */
function column(memory, named) {
  const text = make("p", { class: "text" });
  const note = make("p", { class: "hint" }, "…");
  const title = named ? make("h3", {}, memory.name ?? memory.id) : "";
  return { text: "", problem: "", shown: text, note, element: make("section", { class: "answer" }, title, text, note) };
}

function body(memory, messages) {
  const write = byId("remember").checked;
  return {
    model: memory.model,
    messages,
    ...(memory.id && { memory: write ? { id: memory.id, write } : memory.id }),
    max_tokens: Number(byId("max-tokens").value) || 400,
    temperature: Number(byId("temperature").value) || 0,
    stream: true,
    stream_options: { include_usage: true },
  };
}
