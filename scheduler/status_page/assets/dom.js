/** The few words in which this page speaks to the document. Text only ever becomes text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element with attributes (or `on…` listeners) and children. */
export function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An SVG element. */
export function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const byId = (id) => document.getElementById(id);

/** Set text only where it differs, so that selections and screen readers are left in peace. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Make `parent`'s children exactly `children`, moving only what is out of place. */
export function arrange(parent, children) {
  children.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] ?? null);
  });
  while (parent.children.length > children.length) parent.lastElementChild.remove();
}

/** A group of exclusive choices that arrow keys move through. `choose(value)` is called on a change. */
export function segmented(group, options, chosen, choose) {
  if (group.children.length !== options.length) {
    group.replaceChildren(...options.map(() => h("button", { type: "button", role: "radio" })));
  }
  options.forEach(([value, text], i) => {
    const button = group.children[i];
    setText(button, text);
    button.setAttribute("aria-checked", String(value === chosen));
    button.tabIndex = value === chosen ? 0 : -1;
    button.onclick = () => choose(value);
  });
  group.onkeydown = (event) => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const at = (options.findIndex(([value]) => value === chosen) + move + options.length) % options.length;
    choose(options[at][0]);
    group.children[at].focus();
  };
}

/** What the visitor chose before, or `fallback`. */
export function recall(key, fallback) {
  try {
    return localStorage.getItem(key) ?? fallback;
  } catch {
    return fallback;
  }
}

/** Keep a choice in this browser, where it allows that. */
export function keep(key, value) {
  try {
    if (value === null) localStorage.removeItem(key);
    else localStorage.setItem(key, value);
  } catch {
    // Storage is switched off: the choice lasts as long as the page.
  }
}
