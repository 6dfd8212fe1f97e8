/** The jobs: what each is, how wide it runs, how it goes, and on demand everything about it. */
import { arrange, byId, h, setText } from "./dom.js";
import { deviceFree, fillDetail } from "./jobdetail.js";
import { duration, figure, number } from "./format.js";
import { progressBar, sparkline, widthBar, widthRange } from "./marks.js";
import { nowOf } from "./state.js";
import { locale, t, tryT } from "./strings.js";
import { commandLine } from "./overview.js";

const STATES = ["running", "starting", "ending", "parked", "queued", "done", "failed", "cancelled"];
const rows = new Map(); // job id -> {body, ..., shown}

/** Bring the table up to date; `highlight(job id or null)` shows on the map where a job runs. */
export function renderJobs(state, highlight) {
  const reasons = new Map(state.unplaced.map((row) => [row.job, row]));
  const jobs = state.job_order.map((id) => state.jobs.get(id)).filter(Boolean);
  const ids = new Set(state.job_order);
  for (const id of rows.keys()) if (!ids.has(id)) rows.delete(id);
  for (const job of jobs) update(rowOf(job, highlight), job, reasons.get(job.id), nowOf(state));
  const table = byId("job-table");
  arrange(table, [table.tHead, ...jobs.map((job) => rows.get(job.id).body)]);
  table.hidden = jobs.length === 0;
  renderCounts(state);
  renderEmpty(state, jobs);
}

function renderCounts(state) {
  const total = Object.values(state.job_counts).reduce((sum, n) => sum + n, 0);
  const parts = STATES.filter((name) => state.job_counts[name]).map((name) => [name, state.job_counts[name]]).map(([name, n]) => `${number(n)} ${tryT(`state_${name}`, name).toLowerCase()}`);
  if (total > state.job_order.length) parts.push(t("more_jobs", { n: number(total - state.job_order.length) }));
  setText(byId("job-counts"), parts.join(" · "));
}

function renderEmpty(state, jobs) {
  const host = byId("no-jobs");
  host.hidden = jobs.length > 0;
  const hasNodes = state.sites.some((site) => site.nodes.length);
  const key = `${hasNodes}${locale()}`;
  if (host.hidden || host.dataset.key === key) return;
  host.dataset.key = key;
  host.replaceChildren(h("p", {}, t(hasNodes ? "no_jobs" : "no_jobs_no_nodes")), ...(hasNodes ? [commandLine("fallow submit examples/train-moe.yaml")] : []));
}

function rowOf(job, highlight) {
  const known = rows.get(job.id);
  if (known) return known;
  const row = makeRow(job);
  rows.set(job.id, row);
  row.body.addEventListener("pointerenter", () => highlight(job.id));
  row.body.addEventListener("pointerleave", () => highlight(null));
  row.toggle.addEventListener("focus", () => highlight(job.id));
  row.toggle.addEventListener("blur", () => highlight(null));
  row.toggle.addEventListener("click", () => {
    row.detail.hidden = !row.detail.hidden;
    row.toggle.setAttribute("aria-expanded", String(!row.detail.hidden));
    if (!row.detail.hidden) fillDetail(row.detail.firstElementChild, row.job);
  });
  return row;
}

function makeRow(job) {
  const row = {
    toggle: h("button", { type: "button", class: "job-name", "aria-expanded": "false", "aria-controls": `detail-${job.id}` }),
    about: h("p", { class: "about" }), wait: h("p", { class: "wait" }), pill: h("span", { class: "pill" }),
    width: h("td", { class: "col-width" }), trend: h("td", { class: "col-trend" }), progress: h("td", { class: "col-progress" }),
    detail: h("tr", { class: "detail", id: `detail-${job.id}`, hidden: true }, h("td", { colspan: "5" })),
    job: null, key: "",
  };
  row.body = h("tbody", { class: "job" },
    h("tr", {},
      h("th", { scope: "row", class: "col-job" }, row.toggle, row.about, row.wait),
      h("td", { class: "col-state" }, row.pill), row.width, row.trend, row.progress),
    row.detail);
  return row;
}

function update(row, job, reason, now) {
  const key = `${locale()}|${reason?.message ?? ""}`;
  if (row.job === job && row.key === key) return;
  Object.assign(row, { job, key });
  row.body.className = `job s-${job.state}`;
  setText(row.toggle, job.name);
  row.toggle.setAttribute("aria-label", t("details_of", { name: job.name }));
  setText(row.about, [tryT(`kind_${job.kind}`, job.kind), job.site, job.user].filter(Boolean).join(" · "));
  setText(row.wait, reason && job.width === 0 ? reason.message : job.state === "failed" ? job.message : "");
  row.pill.className = `pill is-${job.state}`;
  setText(row.pill, tryT(`state_${job.state}`, job.state));
  row.width.replaceChildren(...widthCell(job));
  row.trend.replaceChildren(...trendCell(job));
  row.progress.replaceChildren(...progressCell(job, now));
  if (!row.detail.hidden) fillDetail(row.detail.firstElementChild, job);
}

function widthCell(job) {
  if (deviceFree(job)) return [];
  return [
    widthBar(job.width, job.min_width, job.max_width),
    h("p", { class: "cell-line" }, h("b", {}, number(job.width)), h("span", { class: "aside" }, widthRange(job.min_width, job.max_width))),
  ];
}

function trendCell(job) {
  const lines = [];
  if (job.loss !== null) lines.push(h("p", { class: "cell-line" }, h("b", {}, figure(job.loss)), h("span", { class: "aside" }, t("loss"))));
  if (job.rate !== null) lines.push(h("p", { class: "cell-line" }, h("b", {}, figure(job.rate)), h("span", { class: "aside" }, job.rate_unit)));
  return [sparkline(job.curve, job.curve_is_loss ? t("loss") : job.rate_unit), h("div", { class: "readings" }, ...lines)];
}

function progressCell(job, now) {
  const time = job.ended_s !== null ? t("took", { time: duration(job.ended_s - (job.started_s ?? job.submitted_s)) })
    : job.eta_s !== null ? t("steps_left", { time: duration(job.eta_s) })
    : job.width && job.started_s !== null ? t("running_for", { time: duration(now - job.started_s) })
    : t("waits_for", { time: duration(now - job.submitted_s) });
  if (!job.total) return [h("p", { class: "cell-line" }, job.step ? h("span", {}, t("items", { n: number(job.step) })) : null, h("span", { class: "aside" }, time))];
  return [
    progressBar(job.step, job.total),
    h("p", { class: "cell-line" }, h("span", {}, t("step_of", { step: number(job.step), total: number(job.total) })), h("span", { class: "aside" }, time)),
  ];
}
