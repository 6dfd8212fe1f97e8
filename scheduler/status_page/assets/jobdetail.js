/** Everything that the page knows of one job. */
import { h } from "./dom.js";
import { clock, duration, figure, number } from "./format.js";
import { widthRange } from "./marks.js";
import { t, tryT } from "./strings.js";

/** Whether a job is over, so that widths mean nothing any more. */
export const deviceFree = (job) => job.ended_s !== null;

export function fillDetail(host, job) {
  host.replaceChildren(h("div", { class: "detail-grid" }, facts(job), rescales(job), scaling(job)));
}

function facts(job) {
  const lines = [
    ["identity", h("code", {}, job.id)],
    ["submitted", `${clock(job.submitted_s)} ${t("by_user", { user: job.user })}`],
    ...job.roles.map(([role, now, min, max]) => [`role_${role}`, `${number(now)} (${widthRange(min, max)})`]),
    ["endpoint", job.endpoint ? h("code", {}, job.endpoint) : ""],
    ["output", job.output ? h("code", {}, job.output) : ""],
    ["message", job.message],
    ["steps_lost", job.steps_lost ? number(job.steps_lost) : ""],
    ["reclaims_survived", job.losses_by_reclaim ? number(job.losses_by_reclaim) : ""],
  ].filter(([, value]) => value);
  return h("dl", {}, ...lines.flatMap(([key, value]) => [h("dt", {}, tryT(key, key)), h("dd", {}, value)]));
}

function rescales(job) {
  const items = job.rescales.toReversed().map((rescale) => h("li", {},
    h("time", {}, clock(rescale.at_s)),
    h("span", {}, `${tryT(`cause_${rescale.cause}`, rescale.cause)} → ${number(rescale.width)}`),
    h("span", { class: "aside" }, [
      t("stall", { time: duration(rescale.stall_s) }), rescale.steps_lost ? t("steps_again", { n: rescale.steps_lost }) : "",
    ].filter(Boolean).join(" · "))));
  return h("div", {}, h("h3", {}, t("rescales")), items.length ? h("ol", { class: "rescales" }, ...items) : h("p", { class: "aside" }, t("no_rescales")));
}

function scaling(job) {
  if (!job.scaling.length) return null;
  const best = Math.max(...job.scaling.map(([, rate]) => rate));
  const bars = job.scaling.map(([width, rate]) => {
    const bar = h("span", { class: "scaling-bar" });
    bar.style.width = `${best ? (100 * rate) / best : 0}%`;
    return h("li", {}, h("span", {}, number(width)), h("span", { class: "scaling-track" }, bar), h("span", { class: "aside" }, `${figure(rate)}/s`));
  });
  return h("div", {}, h("h3", {}, t("scaling")), h("ol", { class: "scaling" }, ...bars));
}
