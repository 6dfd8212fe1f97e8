/** Puts the page together: messages in, panels out. */
import { renderCapacity } from "./capacity.js";
import { byId, h, keep, recall, setText } from "./dom.js";
import { renderEvents } from "./events.js";
import { renderFigures, renderSites, renderUnplaced, renderWelcome } from "./overview.js";
import { clock } from "./format.js";
import { renderJobs } from "./jobs.js";
import { highlightJob, renderMap } from "./nodemap.js";
import { emptyState, take } from "./state.js";
import { connect } from "./stream.js";
import { switchLanguage, t, translateDocument } from "./strings.js";

const EVERYTHING = new Set(["totals", "sites", "map", "cohorts", "placement", "jobs", "job_order", "unplaced", "history", "events"]);
const state = emptyState();
let link = { state: "connecting", sinceMs: Date.now() };

function render(changed) {
  const any = (...names) => names.some((name) => changed.has(name));
  if (any("totals")) renderFigures(state);
  if (any("sites", "totals")) renderSites(state);
  if (any("sites", "totals", "job_counts")) renderWelcome(state);
  if (any("history", "totals")) renderCapacity(state);
  if (any("sites", "map", "cohorts", "placement", "jobs")) renderMap(state);
  if (any("jobs", "job_order", "unplaced", "job_counts", "totals")) renderJobs(state, highlightJob);
  if (any("unplaced", "jobs")) renderUnplaced(state);
  if (any("events")) renderEvents(state);
}

function renderLink() {
  const element = byId("link");
  element.dataset.link = link.state;
  setText(byId("link-text"), t(`link_${link.state}`));
  const banner = byId("banner");
  const text = link.state === "lost" ? t("lost_since", { time: clock(link.sinceMs / 1000) }) : link.state === "refused" ? t("refused") : "";
  setText(banner, text);
  banner.hidden = !text;
  document.body.classList.toggle("stale", Boolean(text));
}

function onLink(linkState, sinceMs) {
  if (linkState === link.state && linkState === "live") return;
  link = { state: linkState, sinceMs };
  renderLink();
}

function setUpTheme() {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
  const button = byId("theme");
  const show = () => {
    button.replaceChildren(h("span", { class: isDark() ? "sun" : "moon", "aria-hidden": "true" }));
    button.setAttribute("aria-pressed", String(isDark()));
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    keep("fallow-theme", root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);
  if (recall("fallow-theme", null) === null) delete root.dataset.theme;
  show();
}

function showLanguage() {
  translateDocument();
  setText(byId("language"), t("other_language"));
  renderLink();
  render(EVERYTHING);
}

byId("language").addEventListener("click", () => {
  switchLanguage();
  showLanguage();
});
setUpTheme();
showLanguage();
new ResizeObserver(() => renderCapacity(state)).observe(byId("capacity"));
connect((message, isWhole) => {
  document.body.classList.add("loaded");
  render(take(state, message, isWhole));
}, onLink);
