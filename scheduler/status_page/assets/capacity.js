/** Borrowed devices over time, stacked by what they did, with reclaims as marks below. */
import { byId, h, keep, recall, s, segmented, setText } from "./dom.js";
import { clock, number } from "./format.js";
import { nowOf } from "./state.js";
import { t } from "./strings.js";
import { hideTooltip, showTooltip } from "./tooltip.js";

const SPANS = [600, 7200, 86400, 604800];
const STEP_S = { 600: 1, 7200: 15, 86400: 180, 604800: 1260 };
const LAYERS = ["useful", "rescale", "idle"]; // bottom to top; their places in a row are 1 to 3
const RECLAIMS = 4;
const EDGE = { left: 44, right: 12, top: 10, bottom: 30 };
const STRIP = 16; // height of the reclaim marks above the time axis
const TABLE_ROWS = 12;

let span = Number(recall("fallow-span", "600"));
if (!SPANS.includes(span)) span = 600;
let drawn = null; // what the pointer and the arrow keys move over
let focused = null;

/** Draw the chart, its legend, ranges and table. */
export function renderCapacity(state) {
  const rows = rowsOf(state);
  segmented(byId("ranges"), SPANS.map((value) => [value, t(`span_${value}`)]), span, (value) => {
    span = value;
    keep("fallow-span", String(value));
    renderCapacity(state);
  });
  renderLegend(state.totals);
  draw(rows, state);
  renderTable(rows);
}

/** Finished rows of the chosen span, and the present as the last one. */
function rowsOf(state) {
  const rows = state.history.get(span) ?? [];
  if (!state.totals) return rows;
  const { useful, rescale, idle } = state.totals;
  return [...rows, [state.now, useful, rescale, idle, 0]];
}

function renderLegend(totals) {
  const present = totals ?? { useful: 0, rescale: 0, idle: 0 };
  byId("capacity-legend").replaceChildren(
    ...LAYERS.map((layer) => h("li", {}, h("span", { class: `swatch is-${layer}` }), t(layer), h("b", {}, number(present[layer])))),
    h("li", {}, h("span", { class: "swatch mark" }), t("reclaims")));
}

function draw(rows, state) {
  const host = byId("capacity");
  const [width, height] = [host.clientWidth, host.clientHeight];
  if (!width) return;
  if (rows.length < 3) {
    drawn = null;
    host.replaceChildren(h("p", { class: "empty" }, t("no_history")));
    return;
  }
  const scale = scaleOf(rows, nowOf(state), width, height);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, tabindex: "0", role: "img", "aria-label": t("capacity_label", state.totals ?? {}) },
    grid(scale), ...segmentsOf(rows).map((part) => areas(part, scale)), reclaimMarks(rows, scale), s("g", { class: "cursor" }));
  const hadFocus = host.contains(document.activeElement);
  host.replaceChildren(svg);
  drawn = { rows, scale, svg };
  listen(svg);
  if (hadFocus) svg.focus({ preventScroll: true });
  if (focused !== null) pointAt(focused, false);
}

function scaleOf(rows, now, width, height) {
  const end = Math.max(now, rows.at(-1)[0]);
  const start = Math.max(end - span, Math.min(rows[0][0], end - 30));
  const ticks = niceTicks(Math.max(4, ...rows.map((row) => row[1] + row[2] + row[3])));
  const bottom = height - EDGE.bottom - STRIP;
  return {
    start, end, ticks, width, height, bottom,
    x: (time) => EDGE.left + ((time - start) / (end - start)) * (width - EDGE.left - EDGE.right),
    y: (value) => bottom - (value / ticks.at(-1)) * (bottom - EDGE.top),
  };
}

function niceTicks(most) {
  const rough = most / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= rough) * power);
  return Array.from({ length: Math.ceil(most / step) + 1 }, (_, i) => i * step);
}

function grid(scale) {
  const right = scale.width - EDGE.right;
  const values = scale.ticks.map((value) => s("g", {},
    s("line", { class: value ? "rule" : "axis", x1: EDGE.left, x2: right, y1: scale.y(value), y2: scale.y(value) }),
    s("text", { class: "tick", x: EDGE.left - 8, y: scale.y(value) + 4, "text-anchor": "end" }, number(value))));
  const times = timeTicks(scale).map((time) =>
    s("text", { class: "tick", x: scale.x(time), y: scale.height - 8, "text-anchor": "middle" }, clock(time, span <= 600)));
  return s("g", { "aria-hidden": "true" }, ...values, ...times);
}

function timeTicks({ start, end, width }) {
  const wanted = Math.max(2, Math.floor(width / 150));
  const steps = [10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400, 172_800];
  const step = steps.find((seconds) => (end - start) / seconds <= wanted + 0.5) ?? 172_800;
  const offset = new Date(start * 1000).getTimezoneOffset() * 60;
  const first = Math.ceil((start - offset) / step) * step + offset;
  const margin = (end - start) * (34 / width);
  return Array.from({ length: wanted + 1 }, (_, i) => first + i * step).filter((time) => time > start + margin && time < end - margin);
}

/** Runs of rows without a gap: where nothing was recorded, nothing is drawn. */
function segmentsOf(rows) {
  const parts = [[]];
  for (const row of rows) {
    const before = parts.at(-1).at(-1);
    if (before && row[0] - before[0] > Math.max(5, 3 * STEP_S[span])) parts.push([]);
    parts.at(-1).push(row);
  }
  return parts;
}

function areas(rows, scale) {
  let below = rows.map(() => 0);
  const layers = LAYERS.map((layer, i) => {
    const top = rows.map((row, at) => below[at] + row[i + 1]);
    const path = `M${stairs(rows, top, scale)} L${stairs(rows, below, scale, true)}Z`;
    below = top;
    return s("path", { class: `area is-${layer}`, d: path });
  });
  return s("g", {}, ...layers, s("path", { class: "outline", d: `M${stairs(rows, below, scale)}` }));
}

/** Capacity changes in steps, so the line does too. Backwards for the lower edge of an area. */
function stairs(rows, values, scale, backwards = false) {
  const points = [];
  rows.forEach((row, i) => {
    if (i) points.push([scale.x(row[0]), scale.y(values[i - 1])]);
    points.push([scale.x(row[0]), scale.y(values[i])]);
  });
  if (backwards) points.reverse();
  return points.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
}

function reclaimMarks(rows, scale) {
  const struck = rows.filter((row) => row[RECLAIMS] > 0);
  const y = scale.bottom + STRIP + 4;
  return s("g", { class: "reclaims", "aria-hidden": "true" }, ...struck.map((row) => {
    const size = 4 + Math.min(6, 2 * Math.log2(row[RECLAIMS]));
    const x = scale.x(row[0]);
    return s("path", { d: `M${x - size},${y + size / 2} L${x},${y - size} L${x + size},${y + size / 2}Z` });
  }));
}

function listen(svg) {
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    pointAt(nearest(event.clientX - box.left));
  });
  const leave = () => {
    focused = null;
    svg.querySelector(".cursor").replaceChildren();
    hideTooltip();
  };
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const at = focused === null ? drawn.rows.length - 1 : drawn.rows.findIndex((row) => row[0] >= focused) + move;
    pointAt(drawn.rows[Math.max(0, Math.min(drawn.rows.length - 1, at))]?.[0], true);
  });
}

function nearest(x) {
  const { rows, scale } = drawn;
  return rows.reduce((best, row) => (Math.abs(scale.x(row[0]) - x) < Math.abs(scale.x(best[0]) - x) ? row : best))[0];
}

function pointAt(time, aloud = false) {
  const row = drawn.rows.find((candidate) => candidate[0] >= time) ?? drawn.rows.at(-1);
  const { scale, svg } = drawn;
  focused = row[0];
  const x = scale.x(row[0]);
  svg.querySelector(".cursor").replaceChildren(s("line", { x1: x, x2: x, y1: EDGE.top, y2: scale.bottom + STRIP }));
  const lines = [["borrowed", row[1] + row[2] + row[3]], ...LAYERS.map((layer, i) => [layer, row[i + 1]]), ["reclaims", row[RECLAIMS]]];
  const box = svg.getBoundingClientRect();
  showTooltip([
    h("p", { class: "tip-title" }, clock(row[0])),
    h("dl", {}, ...lines.flatMap(([key, value]) => [h("dt", {}, t(key)), h("dd", {}, number(value, 1))])),
  ], box.left + x, box.top + scale.y(row[1]));
  if (aloud) setText(byId("announcer"), `${clock(row[0])}: ${lines.map(([key, value]) => `${t(key)} ${number(value, 1)}`).join(", ")}`);
}

function renderTable(rows) {
  const host = byId("capacity-table");
  if (!host.parentElement.open) {
    host.parentElement.ontoggle = () => renderTable(rows);
    return;
  }
  const every = Math.max(1, Math.ceil(rows.length / TABLE_ROWS));
  const picked = rows.filter((_, i) => (rows.length - 1 - i) % every === 0).reverse();
  const head = ["time", "borrowed", ...LAYERS, "reclaims"].map((key) => h("th", { scope: "col" }, t(key)));
  host.replaceChildren(h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...picked.map((row) =>
    h("tr", {}, h("th", { scope: "row" }, clock(row[0])),
      ...[row[1] + row[2] + row[3], ...row.slice(1)].map((value) => h("td", {}, number(value, 1))))))));
}
