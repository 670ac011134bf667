// Starts the page: the key, the parts, and which of them is seen on a phone.

import { key, onRefused } from "./api.js";
import { byId, during, say } from "./dom.js";
import { startChat } from "./chat.js";
import { startContents } from "./contents.js";
import { startIntake } from "./intake.js";
import { startMaking } from "./making.js";
import { startMemories } from "./memories.js";
import { choose, list } from "./state.js";

/** Show one of the parts; on a wide screen all three are seen anyway. */
function show(view) {
  byId("workspace").dataset.view = view;
  for (const button of document.querySelectorAll(".views button")) {
    if (button.dataset.view === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
}

/** Ask for the key. What is written elsewhere on the page stays there. */
function signIn(message = "") {
  byId("workspace").hidden = true;
  byId("sign-in").hidden = false;
  say("key-error", message);
  byId("key").value = key.get();
  byId("key").focus();
}

/** Fetch what there is, and show it. */
async function enter() {
  await list();
  byId("sign-in").hidden = true;
  byId("workspace").hidden = false;
  byId("sign-out").hidden = !key.get();
  choose(location.hash.slice(1));
}

function start() {
  for (const part of [startMemories, startMaking, startContents, startIntake, startChat]) part(show);
  document.querySelector(".views").addEventListener("click", ({ target }) => target.dataset.view && show(target.dataset.view));
  byId("sign-out").addEventListener("click", () => {
    key.clear();
    location.replace(location.pathname);
  });
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    key.set(byId("key").value.trim());
    during(event.submitter, "key-error", async () => {
      await enter();
      byId("key").value = "";
    });
  });
  onRefused((message) => {
    const known = key.get();
    key.clear();
    signIn(known ? message : "");
  });
  addEventListener("visibilitychange", () => {
    if (!document.hidden && !byId("workspace").hidden) list().catch((error) => say("memories-error", error.message));
  });
  show("memories");
  // A server that was started without keys asks for none.
  enter().catch((error) => error.status === 401 || signIn(error.message));
}

start();
