/** Every node as a cell, coloured by what it does, grouped by site or by the nodes that became idle together. */
import { byId, h, keep, recall, segmented, setText } from "./dom.js";
import { clock, duration, number } from "./format.js";
import { nowOf } from "./state.js";
import { t, tryT } from "./strings.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

const CODES = ["u", "r", "i", "j", "d", "s", "b", "q", "x"];
const SIZES = [[32, "large"], [260, "medium"], [1200, "small"], [Infinity, "tiny"]];
const DETAIL_DELAY_MS = 120;

let grouping = recall("fallow-grouping", "site");
if (grouping !== "cohort") grouping = "site";
let state = null;
let nodes = []; // {name, site} in the order of the map's letters
let cells = [];
let builtFor = null; // the sites and cohorts that the cells were made for
let notes = []; // [element, members], to be counted anew with every state
let active = -1;
let asking = null;
let highlightedJob = null;
let highlighted = null; // the nodes of that job

/** Bring the map up to date; cells are only made anew when nodes come or go, or groups change. */
export function renderMap(newState) {
  state = newState;
  segmented(byId("grouping"), [["site", t("by_site")], ["cohort", t("by_cohort")]], grouping, (value) => {
    grouping = value;
    keep("fallow-grouping", value);
    renderMap(state);
  });
  if (isStale()) build();
  lookUpHighlighted();
  cells.forEach((cell, i) => paint(cell, i));
  for (const [note, members] of notes) setText(note, noteOf(members));
  const counts = countCodes(state.map.states);
  renderLegend(counts);
  renderTable();
  const words = counts.map(([code, n]) => `${n} ${t(`code_${code}`)}`).join(", ");
  byId("map").setAttribute("aria-label", t("map_label", { n: nodes.length, counts: words }));
}

function isStale() {
  const key = [state.sites, grouping, grouping === "cohort" ? state.cohorts : null, document.documentElement.lang];
  const same = builtFor !== null && key.every((part, i) => part === builtFor[i]);
  builtFor = key;
  return !same;
}

function build() {
  nodes = state.sites.flatMap((site) => site.nodes.map((name) => ({ name, site: site.id })));
  const size = SIZES.find(([most]) => nodes.length <= most)[1];
  cells = nodes.map((node, i) => h("i", { class: "cell", "data-i": i },
    ...(size === "large" ? [h("span", { class: "cell-name" }, node.name), h("span", { class: "cell-note" })] : [])));
  byId("map").className = `map ${size}`;
  notes = [];
  byId("map").replaceChildren(...groups().map(([title, members]) => {
    const note = h("span", { class: "aside" });
    notes.push([note, members]);
    return h("div", { class: "map-group" },
      h("p", { class: "map-title" }, h("b", {}, title), note),
      h("div", { class: "cells" }, ...members.map((i) => cells[i])));
  }));
}

function groups() {
  const bySite = state.sites.map((site) => [site, []]);
  const at = new Map(state.sites.map((site, i) => [site.id, i]));
  nodes.forEach((node, i) => bySite[at.get(node.site)][1].push(i));
  const filled = bySite.filter(([, members]) => members.length);
  if (grouping === "site") return filled.map(([site, members]) => [site.id, members]);
  return filled.flatMap(([site, members]) => cohortsOf(members).map(([cohort, part]) => [
    `${site.id} · ${cohort < 0 ? t("not_lent") : cohortName(state.cohorts.names[cohort])}`, part,
  ]));
}

function cohortsOf(members) {
  const parts = new Map();
  for (const i of members) {
    const cohort = state.cohorts.of_node[i] ?? -1;
    parts.set(cohort, [...(parts.get(cohort) ?? []), i]);
  }
  return [...parts].sort(([a], [b]) => (a < 0) - (b < 0) || a - b);
}

/** A cohort is named after its site and the time at which its first node became idle. */
function cohortName(name) {
  const since = Number(name.slice(name.lastIndexOf("@") + 1));
  return Number.isFinite(since) ? t("cohort", { time: clock(since, false) }) : name;
}

function noteOf(members) {
  const nodesText = members.length === 1 ? t("one_node") : t("n_nodes", { n: number(members.length) });
  const lent = members.filter((i) => state.map.lent[i] !== "0").length;
  return lent && lent < members.length ? t("nodes_and_lent", { nodes: nodesText, lent: number(lent) }) : nodesText;
}

function paint(cell, i) {
  const code = state.map.states[i] ?? "b";
  const [lent, used] = [parseInt(state.map.lent[i] ?? "0", 36), parseInt(state.map.used[i] ?? "0", 36)];
  const look = `${code}${lent}/${used}`;
  const hit = highlighted?.has(i) ? " hit" : "";
  if (cell.dataset.look === look + hit + document.documentElement.lang) return;
  cell.dataset.look = look + hit + document.documentElement.lang;
  cell.className = `cell c-${code}${hit}`;
  cell.style.setProperty("--fill", `${lent ? Math.round((100 * used) / lent) : 0}%`);
  if (cell.lastElementChild) setText(cell.lastElementChild, lent && "uri".includes(code) ? `${used}/${lent}` : t(`code_${code}`));
}

function countCodes(states) {
  const counts = new Map();
  for (const code of states) counts.set(code, (counts.get(code) ?? 0) + 1);
  return CODES.filter((code) => counts.has(code)).map((code) => [code, counts.get(code)]);
}

function renderLegend(counts) {
  byId("map-legend").replaceChildren(...counts.map(([code, n]) =>
    h("li", {}, h("span", { class: `swatch cell c-${code}` }), t(`code_${code}`), h("b", {}, number(n)))));
}

function renderTable() {
  const host = byId("map-table");
  host.parentElement.ontoggle = renderTable;
  if (!host.parentElement.open) return;
  let start = 0;
  const rows = state.sites.map((site) => {
    const counts = new Map(countCodes(state.map.states.slice(start, start + site.nodes.length)));
    start += site.nodes.length;
    return h("tr", {}, h("th", { scope: "row" }, site.id), ...CODES.map((code) => h("td", {}, number(counts.get(code) ?? 0))), h("td", {}, number(site.nodes.length)));
  });
  const head = [t("site"), ...CODES.map((code) => t(`code_${code}`)), t("total")].map((text) => h("th", { scope: "col" }, text));
  host.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)));
}

/** Show where a job runs, or everything again for null. */
export function highlightJob(job) {
  highlightedJob = job;
  lookUpHighlighted();
  cells.forEach((cell, i) => paint(cell, i));
}

function lookUpHighlighted() {
  const members = highlightedJob === null ? [] : state?.placement[highlightedJob] ?? [];
  highlighted = members.length ? new Set(members) : null;
  byId("map").classList.toggle("dimmed", highlighted !== null);
}

function point(i) {
  cells[active]?.classList.remove("active");
  active = i;
  if (!cells[i]) return;
  cells[i].classList.add("active");
  const box = cells[i].getBoundingClientRect();
  const show = (more) => showTooltip([...brief(i), ...more], box.right - 8, box.bottom - 8);
  show([]);
  clearTimeout(asking);
  asking = setTimeout(async () => {
    const detail = await ask(nodes[i].name);
    if (detail && active === i) show(full(detail));
  }, DETAIL_DELAY_MS);
}

function leave() {
  clearTimeout(asking);
  cells[active]?.classList.remove("active");
  active = -1;
  hideTooltip();
}

async function ask(name) {
  try {
    const answer = await fetch(`api/nodes/${name.split("/").map(encodeURIComponent).join("/")}`);
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}

function brief(i) {
  const [lent, used] = [parseInt(state.map.lent[i] ?? "0", 36), parseInt(state.map.used[i] ?? "0", 36)];
  return [
    h("p", { class: "tip-title" }, h("span", { class: `swatch cell c-${state.map.states[i]}` }), nodes[i].name, h("span", { class: "aside" }, nodes[i].site)),
    h("p", {}, t(`code_${state.map.states[i]}`), lent ? ` · ${t("devices_used", { used, lent })}` : ""),
  ];
}

function full(detail) {
  const now = nowOf(state);
  const lines = [
    ["runs", detail.work.map(([, name, n]) => `${name} (${n === 1 ? t("one_worker") : t("workers", { n })})`).join(", ")],
    ["back_in", detail.deadline_s === null ? "" : duration(detail.deadline_s - now)],
    ["ends_in", detail.expected_end_s === null ? "" : clock(detail.expected_end_s, false)],
    ["lent_for", detail.lease_started_s === null ? "" : duration(now - detail.lease_started_s)],
    ["owner_says", [detail.source, detail.drain_cause || detail.reason].filter(Boolean).join(": ")],
    ["grace", detail.grace_s ? duration(detail.grace_s) : ""],
    ["handed_back", detail.reclaims ? t("times", { n: detail.reclaims, time: duration(detail.last_free_s) }) : ""],
    ["devices", [...new Set(detail.devices)].map((model) => `${detail.devices.filter((other) => other === model).length} × ${model}`).join(", ")],
    ["since_report", detail.last_report_s ? t("ago", { time: duration(now - detail.last_report_s) }) : ""],
  ].filter(([, value]) => value);
  return [h("dl", { class: "tip-details" }, ...lines.flatMap(([key, value]) => [h("dt", {}, tryT(key, key)), h("dd", {}, value)]))];
}

function listen(map) {
  map.addEventListener("pointerover", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) point(Number(cell.dataset.i));
  });
  map.addEventListener("pointerleave", leave);
  map.addEventListener("blur", leave);
  map.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") leave();
    if (!move || !nodes.length) return;
    event.preventDefault();
    point(Math.max(0, Math.min(nodes.length - 1, active < 0 ? 0 : active + move)));
    setText(byId("announcer"), `${nodes[active].name}, ${nodes[active].site}: ${t(`code_${state.map.states[active]}`)}`);
  });
}

listen(byId("map"));
