/** Small drawings in a line of text: width, progress, a curve. */
import { h, s } from "./dom.js";
import { figure, number } from "./format.js";
import { t } from "./strings.js";

const MOST_SEGMENTS = 16;
const [WIDTH, HEIGHT, PAD] = [112, 30, 3];

/** Filled up to the present width, with a tick at the least that the job runs with. */
export function widthBar(width, min, max) {
  const label = t("width_label", { n: number(width), min: number(min), max: number(max) });
  if (max <= MOST_SEGMENTS) {
    return h("div", { class: "width segments", role: "img", "aria-label": label, title: label },
      ...Array.from({ length: max }, (_, i) => h("span", { class: `${i < width ? "on" : ""}${i === min - 1 && min < max ? " least" : ""}` })));
  }
  const [filled, least] = [h("span", { class: "on" }), h("span", { class: "least", hidden: min === max })];
  filled.style.width = `${(100 * width) / max}%`;
  least.style.left = `${(100 * min) / max}%`;
  return h("div", { class: "width track", role: "img", "aria-label": label, title: label }, filled, least);
}

/** What a width may be: 64–192, or just 96. */
export const widthRange = (min, max) => (min === max ? number(max) : t("width_range", { min: number(min), max: number(max) }));

export function progressBar(step, total) {
  const percent = Math.min(100, (100 * step) / total);
  const done = h("span", {});
  done.style.width = `${percent}%`;
  return h("div", { class: "progress", role: "progressbar", "aria-valuenow": Math.round(percent), "aria-valuemin": "0", "aria-valuemax": "100", "aria-label": t("progress") }, done);
}

/** A curve without axes; nothing before there are three points. */
export function sparkline(points, unit) {
  if (points.length < 3) return h("div", { class: "no-spark" });
  const [least, most] = [Math.min(...points), Math.max(...points)];
  const range = most - least || Math.abs(most) || 1;
  const xy = points.map((value, i) => [
    PAD + (i / (points.length - 1)) * (WIDTH - 2 * PAD),
    HEIGHT - PAD - ((value - least) / range) * (HEIGHT - 2 * PAD),
  ]);
  const line = xy.map(([x, y]) => `${x.toFixed(1)},${y.toFixed(1)}`).join(" ");
  const [lastX, lastY] = xy.at(-1);
  const label = `${unit}: ${figure(points[0])} → ${figure(points.at(-1))}`;
  return s("svg", { class: "spark", width: WIDTH, height: HEIGHT, viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    s("title", {}, label),
    s("path", { class: "spark-area", d: `M${PAD},${HEIGHT} L${line} L${lastX.toFixed(1)},${HEIGHT}Z` }),
    s("path", { class: "spark-line", d: `M${line}` }),
    s("circle", { cx: lastX, cy: lastY, r: 2.4 }));
}
