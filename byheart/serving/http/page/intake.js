// Texts on their way into a memory: pasted, chosen, or dropped. One is written after the other.

import { events, Failure, once, open, path } from "./api.js";
import { byId, make } from "./dom.js";
import { count } from "./format.js";
import { refresh, state, when } from "./state.js";

const LARGEST = 256 * 1024 * 1024;
const queue = [];
let running = false;

export function startIntake(show) {
  when("chosen", draw);
  byId("add-form").addEventListener("submit", (event) => {
    event.preventDefault();
    paste();
  });
  byId("choose-files").addEventListener("click", () => byId("files").click());
  byId("files").addEventListener("change", ({ target }) => {
    for (const file of target.files) add(file.name, file);
    target.value = "";
  });
  startDropping(show);
  addEventListener("beforeunload", (event) => {
    if (queue.some(isUnderWay)) event.preventDefault();
  });
}

/** What was pasted stays in its box until it is written, so that nothing is lost when that fails. */
function paste() {
  const box = byId("text");
  const text = box.value;
  if (!text.trim() || queue.some((item) => item.box === box && isUnderWay(item))) return;
  for (const item of queue.filter((each) => each.box === box)) remove(item);
  add("pasted text", text, { box });
}

function isUnderWay({ status }) {
  return status === "waiting" || status === "writing";
}

function startDropping(show) {
  const veil = byId("drop");
  const carries = (event) => state.current && [...event.dataTransfer.types].includes("Files");
  addEventListener("dragover", (event) => {
    event.preventDefault();
    veil.hidden = !carries(event);
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) veil.hidden = true;
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    veil.hidden = true;
    if (!carries(event)) return;
    for (const file of event.dataTransfer.files) add(file.name, file);
    show("memory");
  });
}

/** Put a text, or a file with one, at the end of the queue of the chosen memory. */
function add(source, content, { box } = {}) {
  queue.push({ memory: state.current.id, source, content, box, key: once(), status: "waiting" });
  draw();
  run();
}

async function run() {
  if (running) return;
  running = true;
  for (let item; (item = queue.find(({ status }) => status === "waiting")); ) await write(item);
  running = false;
}

async function write(item) {
  item.status = "writing";
  if (item.box) item.box.readOnly = true;
  draw();
  try {
    const text = typeof item.content === "string" ? item.content : await read(item.content);
    item.entry = await send(item, text);
    item.status = "written";
    if (item.box) item.box.value = "";
  } catch (error) {
    item.status = "failed";
    item.problem = error.message;
  }
  if (item.box) item.box.readOnly = false;
  draw();
  if (item.status === "written") await refresh(item.memory).catch(() => {});
}

/** The text of a file. Raises Error where it is none. */
async function read(file) {
  if (file.size > LARGEST) throw new Error("It is larger than 256 MiB. Cut it into parts, and add these.");
  let bytes;
  try {
    bytes = await file.arrayBuffer();
  } catch {
    throw new Error("It cannot be read. A folder must be added file by file.");
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new Error("It is not text in UTF-8. Save it as a text file, and add that.");
  }
}

/** Write a text, and follow how far the server is; gives what was written. */
async function send(item, text) {
  const headers = { "Idempotency-Key": item.key };
  const body = { text, source: item.source, stream: true };
  const response = await open("POST", path(item.memory, "writes"), { body, headers });
  let written;
  for await (const event of events(response)) {
    if (event.object === "memory.write") written = event;
    else progress(item, event);
  }
  if (!written) throw new Failure("The connection was cut. Try again: what was written already is not written twice.");
  return written.entry;
}

function progress(item, { done, total }) {
  item.bar?.setAttribute("max", total);
  item.bar?.setAttribute("value", done);
}

function remove(item) {
  queue.splice(queue.indexOf(item), 1);
  draw();
}

function again(item) {
  item.status = "waiting";
  draw();
  run();
}

function draw() {
  const shown = queue.filter((item) => item.memory === state.current?.id);
  byId("queue").replaceChildren(...shown.map(row));
}

function row(item) {
  const button = (says, task) =>
    make("button", { type: "button", class: "quiet", "aria-label": `${says}: ${item.source}`, on: { click: task } }, says);
  const parts = {
    waiting: () => ["waiting", button("Remove", () => remove(item))],
    writing: () => [(item.bar = make("progress", { "aria-label": `Writing ${item.source}` }))],
    written: () => [`${count(item.entry.tokens, "token")} written`],
    failed: () => [
      make("span", { class: "error", role: "alert" }, item.problem),
      button("Try again", () => again(item)),
      button("Remove", () => remove(item)),
    ],
  };
  return make("li", { class: item.status }, make("span", { class: "name" }, item.source), ...parts[item.status]());
}
