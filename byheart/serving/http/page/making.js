// The dialog that makes a new memory.

import { ask } from "./api.js";
import { byId, during, make, say } from "./dom.js";
import { parseOptions, RATES, writeOptions } from "./methods.js";
import { choose, list, state } from "./state.js";

const DEFAULT = { id: "", summary: "What the server takes for its model: compact where it can have it, full where not.", options: {} };

export function startMaking(show) {
  const dialog = byId("make");
  byId("make-method").addEventListener("change", drawMethod);
  byId("new").addEventListener("click", () => {
    drawChoices();
    drawMethod();
    say("make-error");
    dialog.showModal();
  });
  byId("make-cancel").addEventListener("click", () => dialog.close());
  byId("make-form").addEventListener("submit", (event) => {
    event.preventDefault();
    during(event.submitter, "make-error", async () => {
      const memory = await ask("POST", "/v1/memories", { body: asked() });
      dialog.close();
      event.target.reset();
      await list();
      choose(memory.id);
      show("memory");
      byId("text").focus();
    });
  });
}

function drawChoices() {
  const option = ({ id }) => make("option", { value: id }, id || "default");
  const others = state.methods.filter(({ id }) => !(id in RATES));
  const first = Object.keys(RATES).flatMap((name) => state.methods.filter(({ id }) => id === name));
  const chosen = byId("make-method").value;
  byId("make-model").replaceChildren(...state.models.map(option));
  byId("make-method").replaceChildren(
    ...[DEFAULT, ...first].map(option),
    make("optgroup", { label: "Others" }, ...others.map(option)),
  );
  byId("make-method").value = chosen;
}

function chosenMethod() {
  return state.methods.find(({ id }) => id === byId("make-method").value) ?? DEFAULT;
}

function drawMethod() {
  const { id, summary, options } = chosenMethod();
  const { option, label = "", ...limits } = RATES[id] ?? {};
  const field = byId("make-rate");
  byId("make-method-hint").textContent = summary;
  byId("make-rate-field").hidden = !option;
  byId("make-rate-label").textContent = label;
  for (const limit of ["min", "max", "step"]) field.setAttribute(limit, limits[limit] ?? "any");
  field.required = Boolean(option);
  field.value = options[option] ?? "";
  byId("make-others").hidden = !id;
  byId("make-options").value = "";
  const others = Object.entries(options).filter(([name, value]) => name !== option && typeof value !== "object");
  byId("make-options").placeholder = writeOptions(Object.fromEntries(others));
}

/** The body of the request. */
function asked() {
  const { id } = chosenMethod();
  const body = { name: byId("make-name").value.trim(), model: byId("make-model").value };
  if (!id) return body;
  const rate = RATES[id] && { [RATES[id].option]: Number(byId("make-rate").value) };
  return { ...body, method: id, options: { ...rate, ...parseOptions(byId("make-options").value) } };
}
