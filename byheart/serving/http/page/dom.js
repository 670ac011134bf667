// Elements by their id, and new ones. Text is only ever set as text, so that nothing from a server is taken for HTML.

export function byId(id) {
  return document.getElementById(id);
}

/** An element with these properties (`class`, `on` for listeners, `data`, `aria-…` and others as attributes). */
export function make(tag, { on = {}, data = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  Object.assign(element.dataset, data);
  element.append(...children.filter((child) => child !== undefined && child !== ""));
  return element;
}

/** Show a message in an element that is hidden while there is none. */
export function say(id, message = "") {
  const element = byId(id);
  element.textContent = message;
  element.hidden = !message;
}

/** Run a button's task; it cannot be pressed again meanwhile, and what fails is said in the element `errors`. */
export async function during(button, errors, task) {
  say(errors);
  button.disabled = true;
  try {
    return await task();
  } catch (error) {
    say(errors, error.message);
    return undefined;
  } finally {
    button.disabled = false;
  }
}
