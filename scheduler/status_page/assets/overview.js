/** Headline figures, sites, what waits and why, and the first steps. */
import { arrange, byId, h, setText } from "./dom.js";
import { deviceHours, duration, number, percent } from "./format.js";
import { t, tryT } from "./strings.js";

const LIVE = [["running", "useful"], ["starting", "rescale"], ["ending", "rescale"], ["parked", "idle"], ["queued", "idle"]];

/** The five figures that a wall screen is read by. */
export function renderFigures({ totals, job_counts }) {
  byId("figures").replaceChildren(...(totals ? figures(totals, job_counts) : []));
}

function figures(totals, jobs) {
  const { books, hand_backs: back } = totals;
  return [
    card("nodes_lent", number(totals.nodes_lent), t("of_nodes", { n: number(totals.nodes) }),
      bar([["useful", totals.nodes_lent]], totals.nodes)),
    card("devices_useful", number(totals.useful), t("of_borrowed", { n: number(totals.borrowed) }),
      bar([["useful", totals.useful], ["rescale", totals.rescale], ["idle", totals.idle]], totals.borrowed)),
    card("harvest", totals.harvest === null ? "–" : percent(totals.harvest), harvestNote(totals),
      bar([["useful", books.useful_h], ["rescale", books.rescale_h], ["idle", books.idle_h], ["lost", books.lost_h]], books.borrowed_h)),
    card("jobs_running", number(jobs.running ?? 0), jobsNote(jobs),
      bar(LIVE.map(([name, tone]) => [tone, jobs[name] ?? 0]), LIVE.reduce((sum, [name]) => sum + (jobs[name] ?? 0), 0))),
    card("given_back", number(back.count), handBackNote(back),
      bar([["useful", back.count - back.late], ["lost", back.late]], back.count), back.count ? (back.late ? "bad" : "good") : ""),
  ];
}

function harvestNote({ harvest, books }) {
  if (harvest === null) return t("harvest_none");
  return t("harvest_note", { useful: deviceHours(books.useful_h), borrowed: deviceHours(books.borrowed_h) });
}

function jobsNote(jobs) {
  const waiting = (jobs.queued ?? 0) + (jobs.parked ?? 0);
  return t("jobs_note", { waiting: number(waiting), done: number(jobs.done ?? 0) });
}

function handBackNote(back) {
  if (!back.count) return t("none_given_back");
  return t(back.late ? "some_late" : "all_in_time", { n: number(back.late), time: duration(back.slowest_s) });
}

function card(label, value, note, filled, tone = "") {
  return h("div", { class: "figure" },
    h("p", { class: "figure-label" }, t(label)),
    h("p", { class: "figure-value" }, value),
    filled,
    h("p", { class: `figure-note ${tone}` }, note));
}

function bar(parts, whole) {
  const filled = whole ? parts.filter(([, value]) => value > 0) : [];
  return h("div", { class: "bar-of", "aria-hidden": "true" }, ...filled.map(([kind, value]) => {
    const part = h("span", { class: `is-${kind}`, title: tryT(kind, kind) });
    part.style.width = `${(100 * value) / whole}%`;
    return part;
  }));
}

/** One chip a site. */
export function renderSites({ sites }) {
  byId("sites").replaceChildren(...sites.map((site) =>
    h("li", { class: site.connected ? "site" : "site away", title: t(site.connected ? "site_connected" : "site_away", { site: site.id }) },
      h("span", { class: "dot", "aria-hidden": "true" }),
      site.id,
      site.connected ? null : h("span", { class: "aside" }, ` ${t("away")}`))));
}

/** Everything that has not what it asked for, with reason and remedy. */
export function renderUnplaced({ unplaced }) {
  byId("unplaced").replaceChildren(...unplaced.map((row) =>
    h("li", {},
      h("p", { class: "reason-head" }, h("strong", {}, row.name), h("span", { class: `pill is-${row.state}` }, tryT(`state_${row.state}`, row.state))),
      h("p", {}, row.message),
      row.remedy ? h("p", { class: "remedy" }, row.remedy) : null)));
  byId("nothing-unplaced").hidden = unplaced.length > 0;
  setText(byId("unplaced-count"), unplaced.length ? number(unplaced.length) : "");
}

const TOKENS = "fallow token create --role agent --name NAME";

/** The first steps, for as long as they are not done. */
export function renderWelcome(state) {
  const started = state.totals !== null;
  const hasNodes = state.sites.some((site) => site.nodes.length);
  const hasJobs = state.job_order.length > 0;
  const isNew = started && !hasNodes && !hasJobs;
  document.body.classList.toggle("is-new", isNew);
  byId("welcome").hidden = !isNew;
  if (!isNew) return;
  const scheduler = `${location.hostname}:PORT`;
  arrange(byId("steps"), [
    step("step_site", `fallow site --name SITE --scheduler ${scheduler} --token-file site.token --dir ~/fallow-site`, state.sites.some((site) => site.connected)),
    step("step_agent", `fallow agent --node $(hostname) --site SITE --scheduler ${scheduler} --token-file agent.token --dir /var/tmp/fallow`, false, t("token_hint", { command: TOKENS })),
    step("step_submit", "fallow submit examples/train-moe.yaml", false),
  ]);
  byId("one-machine").replaceChildren(commandLine("fallow up"));
}

function step(key, command, done, hint = "") {
  return h("li", { class: done ? "done" : "" },
    h("h3", {}, t(key), done ? h("span", { class: "pill is-done" }, t("done")) : null),
    h("p", {}, t(`${key}_text`)),
    commandLine(command),
    hint ? h("p", { class: "aside" }, hint) : null);
}

/** A command with a button that copies it. */
export function commandLine(command) {
  const button = h("button", { type: "button", class: "quiet", onclick: () => copy(command, button) }, t("copy"));
  return h("div", { class: "command" }, h("code", { tabindex: "0" }, command), button);
}

async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    setText(button, t("copied"));
  } catch {
    getSelection().selectAllChildren(button.previousElementSibling);
  }
}
