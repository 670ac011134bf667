// The dialog that asks for a name or for a yes.

import { byId, during, say } from "./dom.js";

/**
 * Ask, and do `task` with the name once the user agrees. The dialog closes when it is done; what fails is said in it.
 * Without `name` it asks for a yes.
 */
export function ask({ title, text = "", name, verb, danger = false }, task) {
  const dialog = byId("ask");
  const button = byId("ask-do");
  byId("ask-title").textContent = title;
  byId("ask-text").textContent = text;
  byId("ask-field").hidden = name === undefined;
  byId("ask-name").value = name ?? "";
  byId("ask-name").required = name !== undefined;
  button.textContent = verb;
  button.className = danger ? "danger" : "primary";
  say("ask-error");
  byId("ask-cancel").onclick = () => dialog.close();
  byId("ask-form").onsubmit = (event) => {
    event.preventDefault();
    during(button, "ask-error", async () => {
      await task(byId("ask-name").value.trim());
      dialog.close();
    });
  };
  dialog.showModal();
  if (name === undefined) byId("ask-cancel").focus();
  else byId("ask-name").select();
}
