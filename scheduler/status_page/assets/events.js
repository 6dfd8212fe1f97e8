/** What happened, newest first, each with what caused it. */
import { arrange, byId, h, setText } from "./dom.js";
import { clock } from "./format.js";
import { t } from "./strings.js";

const SHOWN = 80;
const TONES = [
  [/lost|gone|failed|disconnect/, "lost"],
  [/reclaim|drain|left|leave/, "reclaim"],
  [/reject|refus|silent/, "refused"],
  [/reached|assign|rescale|grow|shrink/, "rescale"],
  [/done|ended|ready|connected|opened|submitted/, "good"],
];

const rows = new Map(); // sequence -> element

/** Bring the list up to date. Rows that stay are left alone, so that one can read on and select text. */
export function renderEvents({ events, jobs }) {
  const shown = events.slice(-SHOWN).reverse();
  for (const event of shown) if (!rows.has(event.sequence)) rows.set(event.sequence, row(event));
  const sequences = new Set(shown.map((event) => event.sequence));
  for (const sequence of rows.keys()) if (!sequences.has(sequence)) rows.delete(sequence);
  for (const event of shown) {
    const element = rows.get(event.sequence);
    setText(element.querySelector("time"), clock(event.at_s));
    if (event.job) setText(element.querySelector(".who"), jobs.get(event.job)?.name ?? event.job);
  }
  arrange(byId("events"), shown.map((event) => rows.get(event.sequence)));
  byId("no-events").hidden = shown.length > 0;
}

function row(event) {
  const tone = TONES.find(([pattern]) => pattern.test(event.kind))?.[1] ?? "plain";
  const cause = event.cause_id ? h("button", {
    type: "button", class: "cause", title: `${t("cause", { id: event.cause_id })}. ${t("same_cause")}`,
    onpointerenter: () => mark(event.cause_id), onfocus: () => mark(event.cause_id),
    onpointerleave: () => mark(null), onblur: () => mark(null),
  }, event.cause_id.slice(-6)) : null;
  return h("li", { class: `event t-${tone}`, "data-cause": event.cause_id },
    h("time", { datetime: new Date(event.at_s * 1000).toISOString() }),
    h("span", { class: "dot", "aria-hidden": "true" }),
    h("p", {}, event.job ? h("b", { class: "who" }, event.job) : null, event.job ? " " : null, event.message || event.kind, " ", h("span", { class: "kind" }, event.kind.replaceAll("_", " "))),
    cause);
}

function mark(causeId) {
  for (const element of rows.values()) element.classList.toggle("same", causeId !== null && element.dataset.cause === causeId);
}
